//! Tests: how they are registered, found and run.

use crate::{boot, cpu, report};
use core::cell::UnsafeCell;
use payload_abi::{CMDLINE_TEST, TEST_MAGIC, TestDesc};

#[doc(hidden)]
pub use payload_abi;

unsafe extern "C" {
    static __tests_start: u8;
    static __tests_end: u8;
}

/// Registers a test: its name, one sentence on what it shows, its body. It ends with `pass` when
/// the body ends.
///
/// ```ignore
/// test!(reads_zero, "A register nobody wrote reads as zero.", || {
///     check_eq!(reg::cr2(), 0);
/// });
/// ```
#[macro_export]
macro_rules! test {
    ($name:ident, $about:literal, || $body:expr) => {
        #[doc = $about]
        fn $name() {
            // The descriptor is inside so that a name used twice is an error of the compiler.
            const NAME: &str = ::core::stringify!($name);
            // SAFETY: the section holds such descriptors and nothing else.
            #[used]
            #[unsafe(link_section = ".exitlab.tests")]
            static DESC: $crate::test::payload_abi::TestDesc =
                $crate::test::describe(NAME, $about, $name);
            $body
        }
    };
}

/// The descriptor of a test; part of [`test!`](macro@crate::test).
pub const fn describe(name: &'static str, about: &'static str, run: fn()) -> TestDesc {
    TestDesc {
        magic: TEST_MAGIC,
        flags: 0,
        name: name.as_ptr(),
        name_len: name.len() as u64,
        about: about.as_ptr(),
        about_len: about.len() as u64,
        run,
    }
}

/// All tests of this payload, as (name, sentence).
pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    table().iter().map(|desc| (text(desc.name, desc.name_len), text(desc.about, desc.about_len)))
}

fn table() -> &'static [TestDesc] {
    let start = &raw const __tests_start;
    let bytes = &raw const __tests_end as usize - start as usize;
    // SAFETY: the linker script puts the descriptors, aligned, and nothing else, between the
    // symbols.
    unsafe { core::slice::from_raw_parts(start.cast(), bytes / size_of::<TestDesc>()) }
}

fn text(at: *const u8, len: u64) -> &'static str {
    // SAFETY: `describe` made both from a string literal.
    unsafe { core::str::from_utf8_unchecked(core::slice::from_raw_parts(at, len as usize)) }
}

struct Name(UnsafeCell<&'static str>);

// SAFETY: written once by `main`, before there is a second CPU.
unsafe impl Sync for Name {}

static NAME: Name = Name(UnsafeCell::new("?"));

/// Name of the test that runs; `?` before it is known.
pub fn name() -> &'static str {
    // SAFETY: see `Name`.
    unsafe { *NAME.0.get() }
}

pub(crate) fn main() -> ! {
    let Some(wanted) = boot::argument(CMDLINE_TEST).filter(|name| !name.is_empty()) else {
        for (name, about) in all() {
            crate::println!("{name}: {about}");
        }
        report::error(format_args!("no test named: put {CMDLINE_TEST}=NAME on the command line"));
    };
    // SAFETY: see `Name`; nothing has read it yet but by value.
    unsafe { *NAME.0.get() = wanted };
    let Some(desc) = table().iter().find(|d| text(d.name, d.name_len) == wanted) else {
        report::error(format_args!("this payload has no such test, among its {}", table().len()));
    };
    boot::about_to_print();
    report::begin(wanted);
    (desc.run)();
    if cpu::stack_overflowed() {
        report::error(format_args!("the stack of cpu {} overflowed", cpu::index()));
    }
    report::pass()
}
