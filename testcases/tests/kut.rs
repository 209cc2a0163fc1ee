//! Images as kvm-unit-tests has them, from a `unittests.cfg` to verdicts: with an image of our own that
//! does what its command line says. Needs /dev/kvm; without it this says so and, if EXITLAB_REQUIRE
//! names kvm, fails.

mod real;

use std::fs;
use std::sync::atomic::AtomicBool;

use testcases::facts::HostFacts;
use testcases::facts_table::FactsTable;
use testcases::kut::Suite;
use testcases::load::Catalog;
use testcases::report::{Place, text};
use testcases::require::Require;
use testcases::runner::{self, Collector, Setup};
use testcases::verdict::Outcome;

use Outcome::{Error, Fail, Pass, Skip};

/// Code at 0x100020 that prints what stands on its command line after the image's name and one
/// character, and writes that character, less `0`, to the exit port. Without one it halts for ever.
const CODE: &[u8] = &[
    0xfc, // cld
    0x8b, 0x73, 0x10, // mov esi, [ebx + 16]: the command line, from the multiboot information
    0xac, // 1: lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x20, // jz 4f
    0x3c, 0x20, // cmp al, ' '
    0x75, 0xf7, // jne 1b
    0xac, // lodsb
    0x2c, 0x30, // sub al, '0'
    0x0f, 0xb6, 0xf8, // movzx edi, al
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xac, // 2: lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x03, // jz 3f
    0xee, // out dx, al
    0xeb, 0xf8, // jmp 2b
    0xb0, 0x0a, 0xee, // 3: mov al, '\n'; out dx, al
    0x89, 0xf8, // mov eax, edi
    0x66, 0xba, 0xf4, 0x00, // mov dx, 0xf4
    0xef, // out dx, eax
    0xfa, 0xf4, 0xeb, 0xfc, // 4: cli; hlt; jmp 4b
];

/// A multiboot image with that code, whose header says where it is loaded.
fn image() -> Vec<u8> {
    let (magic, flags, at) = (0x1bad_b002_u32, 1 << 16, 0x10_0000);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let header = [magic, flags, checksum, at, at, 0, 0, at + 32];
    [&header.map(u32::to_le_bytes).concat()[..], CODE].concat()
}

/// Section, the right outcome, a part of the reason. The letters are 0, 1, 38, 63 and 5 after `0`.
const TABLE: &[(&str, Outcome, &str)] = &[
    ("[pass]\nfile = a.flat\ntest_args = '0SUMMARY: 3 tests, 1 skipped'\n", Pass, ""),
    ("[fail]\nfile = a.flat\nextra_params = -append \"1FAIL: two and two\"\n", Fail, "two and two"),
    (
        "[skip]\nfile = a.flat\ntest_args = 'VSKIP: no such thing'\n",
        Skip,
        "the image: no such thing",
    ),
    ("[error]\nfile = a.flat\ntest_args = 'oUnhandled exception'\n", Error, "Unhandled exception"),
    ("[value]\nfile = a.flat\ntest_args = 5x\n", Fail, "the guest wrote 5 to the exit port"),
    ("[halt]\nfile = a.flat\n", Error, "every vCPU halted for ever"),
    ("[time]\nfile = a.flat\ntest_args = \"0`date +%s`\"\n", Pass, ""),
    (
        "[machine]\nfile = a.flat\nsmp = 2\ntest_args = 0\n\
         qemu_params = -cpu max,-x2apic,vendor=GenuineIntel -m 1g -machine pit=off\n",
        Pass,
        "",
    ),
    ("[lenient]\nfile = a.flat\ntest_args = 0\nqemu_params = -cpu qemu64,+3dnow,+svm\n", Pass, ""),
    (
        "[device]\nfile = a.flat\nqemu_params = -device amd-iommu\n",
        Skip,
        "it wants an IOMMU (`-device amd-iommu`)",
    ),
    ("[pci]\nfile = a.flat\ntest_args = 0\nqemu_params = -device edu\n", Pass, ""),
    ("[arch]\nfile = a.flat\narch = i386\n", Skip, "it is for i386"),
    ("[checked]\nfile = a.flat\ntest_args = 0\ncheck = /proc/sys/kernel/ostype=Linux\n", Pass, ""),
    ("[check]\nfile = a.flat\ncheck = /proc/sys/kernel/ostype=Minix\n", Skip, "not `Linux`"),
    ("[module]\nfile = a.flat\ncheck = /sys/module/none/parameters/x=Y\n", Skip, "module:none.x=Y"),
    ("[group]\nfile = a.flat\ngroups = slow nodefault\n", Skip, "--all runs it"),
    ("[absent]\nfile = b.flat\n", Skip, "the image b.flat is not built"),
];

#[test]
fn every_end_of_an_image_has_its_outcome() {
    let facts = FactsTable::collect();
    let Some(vmm) = real::vmm(&facts, "no image is run here") else { return };
    let cancel = AtomicBool::new(false);

    let dir = tempfile::tempdir().expect("a temporary directory");
    let config: String = TABLE.iter().map(|(section, ..)| *section).collect();
    fs::write(dir.path().join("unittests.cfg"), config).expect("a file");
    fs::write(dir.path().join("a.flat"), image()).expect("a file");
    let cases = Suite::open(dir.path()).expect("a suite").cases(false);
    assert_eq!(cases.len(), TABLE.len());

    let catalog = Catalog::new();
    let setup = Setup {
        environment: Default::default(),
        vmm,
        catalog: &catalog,
        facts: &facts,
        jobs: facts.cpus(),
        grace: runner::GRACE,
        slowness: 1.0,
        cancel: &cancel,
    };
    let collector = Collector { runs: dir.path().join("runs"), require: Require::default() };
    let run = runner::run(&cases, &setup, &collector, false, &mut ());
    let mut wrong = Vec::new();
    for ((section, outcome, reason), got) in TABLE.iter().zip(&run.results) {
        let fits = got.verdict.outcome == *outcome && got.verdict.reason.contains(reason);
        if !fits || reason.is_empty() != got.verdict.reason.is_empty() {
            wrong.push(format!(
                "{section}must be {outcome:?} because {reason:?}:\n{}",
                text::details(got, &Place::own())
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let values: Vec<_> = run.results[0].values.iter().map(|m| (&m.key[..], m.value)).collect();
    assert_eq!(values, [("tests", 3), ("skipped", 1)]);
    let printed = fs::read_to_string(run.results[6].logs.join("serial.log")).expect("a log");
    let seconds: u64 = printed.trim().parse().expect("the time, as the configuration asks for it");
    assert!(seconds > 1_700_000_000, "{seconds}");
}
