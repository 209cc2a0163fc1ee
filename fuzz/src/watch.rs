//! What libFuzzer watches: of a chip, the chip; of a board, the board.
//!
//! The counters of everything that is instrumented lie in one section, and libFuzzer would clear and look
//! through all of them for each input, and keep inputs for what the board around a chip does. The
//! linker puts these functions before libFuzzer's (`--wrap`), and they tell it only of the counters
//! that a target's [sources](crate::targets::Target::sources) and its guides have, as if those were modules
//! of their own.
//!
//! The calls come from a constructor of the program, before `main`: LLVM's `SanitizerCoverage`, "Inline
//! 8bit-counters" and "PC-Table".

use std::ops::Range;

use crate::targets::{Subject, Target};

/// Where a board's code lies.
const BOARD: [&str; 4] =
    ["vmm/src/chips/", "vmm/src/machine/", "vmm/src/bus.rs", "vmm/src/state.rs"];

/// What of mangled names is in those of functions that write and read saved states: a third of a board's code.
/// Each script goes through it, and little of what it does is told by that which it did not do otherwise; the
/// target `snapshot` is about them.
const SAVING: [&str; 2] = ["10serde_core", "8postcard"];

/// Which functions are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// One of these is in their names.
    modules: Vec<String>,
    /// None of these is.
    without: &'static [&'static str],
}

impl Watched {
    /// Those of this target, or `None` if all are: for readers, whose helpers matter.
    pub fn of(target: &Target) -> Option<Watched> {
        let modules = modules(target);
        let without = match target.subject {
            Subject::Board { .. } => &SAVING[..],
            Subject::Bytes { .. } => &[],
        };
        (!modules.is_empty()).then_some(Watched { modules, without })
    }

    /// Whether the one of this mangled name is.
    pub fn has(&self, name: &str) -> bool {
        self.modules.iter().any(|module| name.contains(module))
            && !self.without.iter().any(|module| name.contains(module))
    }
}

/// What of mangled names is in those of the functions that a target is about, or nothing if it is about
/// everything.
fn modules(target: &Target) -> Vec<String> {
    let lie_in = |places: &[&str]| {
        target.sources.iter().all(|source| places.iter().any(|place| source.starts_with(place)))
    };
    let guides = match target.subject {
        Subject::Board { guides, .. } => guides,
        Subject::Bytes { .. } => &[],
    };
    let (sources, guides) = match () {
        () if lie_in(&BOARD[..1]) => (target.sources, guides),
        () if lie_in(&BOARD) => (&BOARD[..], &[][..]),
        () => return Vec::new(),
    };
    let modules = sources.iter().chain(guides).map(|source| {
        let path = source.trim_start_matches("vmm/src/").trim_end_matches(".rs");
        let names = path.split('/').filter(|name| !["", "mod"].contains(name));
        // A function that is compiled for a chip (`vmm::device::served_read`) names the crate before, and only
        // points back to it where it names the chip.
        let krate = (!path.starts_with("chips")).then_some("vmm");
        // Identifiers of the v0 scheme: their length, and themselves.
        krate.into_iter().chain(names).map(|name| format!("{}{name}", name.len())).collect()
    });
    modules.collect()
}

/// Where, in a table of code addresses, those lie that are in one of the functions; adjacent ones as one.
pub fn runs(
    addresses: impl IntoIterator<Item = usize>,
    functions: &[Range<usize>],
) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (n, address) in addresses.into_iter().enumerate() {
        if !functions.iter().any(|function| function.contains(&address)) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == n => run.end += 1,
            _ => runs.push(n..n + 1),
        }
    }
    runs
}

#[cfg(all(feature = "libfuzzer", watched))]
mod linked {
    use std::cell::UnsafeCell;
    use std::ops::Range;
    use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};

    use super::{Watched, runs};
    use crate::targets::{self, Target};

    /// Bytes of the second stack: libFuzzer writes the input and its figures from there.
    const SECOND: usize = 256 << 10;

    struct Memory(UnsafeCell<[u8; SECOND]>);

    // SAFETY: nobody but the kernel looks at it.
    unsafe impl Sync for Memory {}

    /// Gives this thread, which will run inputs, a second stack for SIGSEGV. libFuzzer's handler is called on it
    /// if this is wished for before it comes, and without it an input that overflows the stack ends the process
    /// and is lost. AddressSanitizer sees to it by itself.
    fn second_stack() {
        // Not allocated: the kernel alone would know of it, which a checker of leaks does not ask.
        static MEMORY: Memory = Memory(UnsafeCell::new([0; SECOND]));
        let stack = libc::stack_t { ss_sp: MEMORY.0.get().cast(), ss_flags: 0, ss_size: SECOND };
        // SAFETY: zeros are a `sigaction`, both calls only read and write what they are given, and the stack's
        // memory is there for ever and used for nothing else.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let known = libc::sigaction(libc::SIGSEGV, std::ptr::null(), &raw mut action) == 0;
            if known
                && action.sa_sigaction == libc::SIG_DFL
                && libc::sigaltstack(&raw const stack, std::ptr::null_mut()) == 0
            {
                action.sa_flags |= libc::SA_ONSTACK;
                libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut());
            }
        }
    }

    /// An entry of the table: the address of a piece of code, and flags.
    type Entry = [usize; 2];

    /// The counters, until the table comes, which says what they are of.
    static COUNTERS: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
    static HOW_MANY: AtomicUsize = AtomicUsize::new(0);

    // SAFETY: libFuzzer's, declared as it defines them (FuzzerTracePC.cpp); `--wrap` gives them these names.
    unsafe extern "C" {
        fn __real___sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8);
        fn __real___sanitizer_cov_pcs_init(start: *const Entry, stop: *const Entry);
    }

    /// The target of this program.
    fn target() -> Option<&'static Target> {
        let name = std::env::var("EXITLAB_FUZZ_TARGET").ok();
        let of_program = || Some(std::env::current_exe().ok()?.file_name()?.to_str()?.to_owned());
        targets::named(&name.or_else(of_program)?)
    }

    /// Where the functions are that a target has watched, as the file of this program says, and the address
    /// there of the table; nothing if all are.
    fn functions(target: &Target) -> Option<(Vec<Range<usize>>, usize)> {
        let watched = Watched::of(target)?;
        let file = std::fs::read(std::env::current_exe().ok()?).ok()?;
        let elf = goblin::elf::Elf::parse(&file).ok()?;
        let table = elf
            .section_headers
            .iter()
            .find(|header| elf.shdr_strtab.get_at(header.sh_name) == Some("__sancov_pcs"))?
            .sh_addr as usize;
        let is_watched = |symbol: &goblin::elf::Sym| {
            let name = elf.strtab.get_at(symbol.st_name).unwrap_or_default();
            symbol.is_function() && watched.has(name)
        };
        let found = elf.syms.iter().filter(is_watched);
        let found: Vec<_> =
            found.map(|s| s.st_value as usize..(s.st_value + s.st_size) as usize).collect();
        // A program without symbols is watched as a whole.
        (!found.is_empty()).then_some((found, table))
    }

    /// Hears of the counters.
    ///
    /// # Safety
    ///
    /// `start..stop` are the counters, one for each entry of the table that comes next.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn __wrap___sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8) {
        second_stack();
        COUNTERS.store(start, Relaxed);
        HOW_MANY.store(stop as usize - start as usize, Relaxed);
    }

    /// Hears of the table, and tells libFuzzer what it is to watch.
    ///
    /// # Safety
    ///
    /// `start..stop` is the table of the counters that came before.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn __wrap___sanitizer_cov_pcs_init(start: *const Entry, stop: *const Entry) {
        let (counters, all) = (COUNTERS.load(Relaxed), 0..HOW_MANY.load(Relaxed));
        // SAFETY: as the caller says.
        let table = unsafe { std::slice::from_raw_parts(start, stop.offset_from(start) as usize) };
        assert_eq!(table.len(), all.end, "an address for each counter");
        let watched = match target().and_then(functions) {
            Some((functions, at)) => {
                let loaded = (start as usize).wrapping_sub(at);
                runs(table.iter().map(|[address, _]| address.wrapping_sub(loaded)), &functions)
            }
            None => vec![all],
        };
        for run in watched {
            // SAFETY: `run` lies in both tables, and libFuzzer wants counters first and then their addresses.
            unsafe {
                __real___sanitizer_cov_8bit_counters_init(
                    counters.add(run.start),
                    counters.add(run.end),
                );
                __real___sanitizer_cov_pcs_init(start.add(run.start), start.add(run.end));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets;

    #[test]
    fn chips_are_watched_alone_and_boards_without_readers() {
        let of =
            |name: &str| modules(targets::ALL.iter().find(|t| t.name == name).expect("a target"));
        assert_eq!(of("uart"), ["5chips4uart"]);
        let board = ["5chips", "3vmm7machine", "3vmm3bus", "3vmm5state"];
        assert_eq!([of("board"), of("pci"), of("snapshot")], [board; 3]);
        for whole in ["script", "loader", "lab"] {
            assert!(of(whole).is_empty(), "{whole}");
        }
    }

    #[test]
    fn what_saves_a_board_is_watched_where_that_is_the_matter() {
        let of = |name: &str| Watched::of(targets::named(name).expect("a target"));
        let (write, save) = ("_RNv5chips4uart5write", "_RNv5chips4uart10serde_core3ser9Serialize");
        let has = |name: &str| of(name).map(|watched| [write, save].map(|name| watched.has(name)));
        assert_eq!(has("uart"), Some([true, false]));
        assert_eq!(has("board"), Some([true, false]));
        assert_eq!(has("rtc"), Some([false, false]));
        assert_eq!(has("snapshot"), Some([true, true]));
        assert_eq!(has("script"), None);
    }

    #[test]
    fn adjacent_addresses_are_one_run() {
        let table = [0x10, 0x14, 0x20, 0x90, 0x21, 0x2f, 0x30];
        assert_eq!(runs(table, &[0x10..0x15, 0x20..0x30]), [0..3, 4..6]);
        assert_eq!(runs(table, &[]), []);
    }
}
