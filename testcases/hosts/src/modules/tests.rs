use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::compression::Format;
use crate::compression::tests::compress;

const RELEASE: &str = "6.1.0-48-cloud-amd64";

/// A relocatable ELF with the sections `.modinfo` and `.shstrtab`.
pub(crate) fn ko(entries: &[&str]) -> Vec<u8> {
    let info: Vec<u8> = entries.iter().flat_map(|e| [e.as_bytes(), b"\0"].concat()).collect();
    let names = b"\0.modinfo\0.shstrtab\0";
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([1, 0, 62, 0, 1, 0, 0, 0]);
    let table = 64 + info.len() + names.len();
    for value in [0, 0, table as u64] {
        elf.extend(value.to_le_bytes());
    }
    elf.extend([0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 64, 0, 3, 0, 2, 0]);
    elf.extend(&info);
    elf.extend(names);
    let mut section = |name: u32, at: usize, len: usize| {
        elf.extend(name.to_le_bytes());
        elf.extend(1_u32.to_le_bytes());
        for value in [0, 0, at as u64, len as u64, 0, 1, 0] {
            elf.extend(value.to_le_bytes());
        }
    };
    section(0, 0, 0);
    section(1, 64, info.len());
    section(10, 64 + info.len(), names.len());
    elf
}

/// A module of kernel [`RELEASE`].
pub(crate) fn module(depends: &str, parameters: &[&str]) -> Vec<u8> {
    let depends = format!("depends={depends}");
    let vermagic = format!("vermagic={RELEASE} SMP preempt mod_unload modversions ");
    let types: Vec<String> = parameters.iter().map(|p| format!("parmtype={p}:bool")).collect();
    let mut entries = vec!["license=GPL", depends.as_str(), vermagic.as_str()];
    entries.extend(types.iter().map(String::as_str));
    ko(&entries)
}

/// A kernel [`RELEASE`] with these files below its directory of modules.
pub(crate) fn kernel(files: &[(&str, &[u8])]) -> (TempDir, Kernel) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (path, bytes) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, bytes).expect("a file");
    }
    let kernel = Kernel {
        image: "/boot/vmlinuz".into(),
        modules: dir.path().to_owned(),
        release: RELEASE.into(),
        origin: "a test".into(),
    };
    (dir, kernel)
}

/// KVM as Debian 12 has it, with one module in each compression.
pub(crate) fn kvm() -> (TempDir, Kernel) {
    kernel(&[
        (
            "kernel/arch/x86/kvm/kvm.ko.xz",
            &compress(Format::Xz, &module("irqbypass", &["mmu", "nx"])),
        ),
        ("kernel/arch/x86/kvm/kvm-amd.ko", &module("kvm,ccp", &["npt", "nested"])),
        (
            "kernel/arch/x86/kvm/kvm-intel.ko.gz",
            &compress(Format::Gzip, &module("kvm", &["ept", "nested"])),
        ),
        ("kernel/drivers/ccp.ko.zst", &compress(Format::Zstd, &module("", &[]))),
        ("modules.builtin", b"kernel/virt/lib/irqbypass.ko\nkernel/drivers/tty/serial/8250.ko\n"),
        ("modules.builtin.modinfo", b"irqbypass.license=GPL\0irqbypass.parmtype=off:bool\0"),
    ])
}

fn closure(kernel: &Kernel, names: &[&str]) -> Result<Vec<Module>, ModuleError> {
    Modules::open(kernel)?.closure(names)
}

fn names(modules: &[Module]) -> Vec<&str> {
    modules.iter().map(|m| m.name.as_str()).collect()
}

#[test]
fn what_a_module_needs_comes_before_it_and_once() {
    let (_dir, kernel) = kvm();
    let found = closure(&kernel, &["kvm-amd", "kvm_intel"]).unwrap();
    assert_eq!(names(&found), ["irqbypass", "kvm", "ccp", "kvm_amd", "kvm_intel"]);
    assert_eq!(found[0].elf, None, "built in");
    assert_eq!(found[0].parameters, ["off"]);
    assert_eq!(found[1].elf, Some(module("irqbypass", &["mmu", "nx"])));
    assert_eq!(found[3].depends, ["kvm", "ccp"]);
    assert_eq!(found[3].parameters, ["nested", "npt"]);
}

#[test]
fn modules_that_need_each_other_are_no_endless_loop() {
    let (_dir, kernel) = kernel(&[("a.ko", &module("b", &[])), ("b.ko", &module("a", &[]))]);
    assert_eq!(names(&closure(&kernel, &["a"]).unwrap()), ["b", "a"]);
}

#[test]
fn a_kernel_without_a_module_is_named_with_what_was_looked_at() {
    let (dir, kernel) = kernel(&[("kernel/net/kvm_amdd.ko", b"")]);
    let error = closure(&kernel, &["kvm-amd"]).unwrap_err().to_string();
    let place = dir.path().display().to_string();
    for word in [RELEASE, "`kvm_amd`", "nearest is `kvm_amdd`", "1 modules", &place, "linux-image"]
    {
        assert!(error.contains(word), "{error}: no {word}");
    }
    let (_half, kernel) = self::kernel(&[("kvm_amd.ko", &module("kvm", &[]))]);
    let error = closure(&kernel, &["kvm-amd"]).unwrap_err().to_string();
    assert!(error.contains("`kvm`") && error.contains("`kvm_amd` needs it"), "{error}");
    let gone = Kernel { modules: dir.path().join("gone"), ..kernel };
    let error = closure(&gone, &["kvm"]).unwrap_err().to_string();
    assert!(error.contains("gone") && error.contains("unpacked"), "{error}");
}

#[test]
fn a_bad_file_is_named_with_what_is_wrong() {
    let good = module("", &[]);
    let mut program = good.clone();
    program[16] = 2;
    let packed = compress(Format::Xz, &good);
    let cases: [(&str, &[u8], &str); 8] = [
        ("text", b"hello", "no ELF"),
        ("empty", b"", "no ELF"),
        ("packed", &packed[..packed.len() / 2], "xz data is damaged"),
        ("nothing", &compress(Format::Xz, b"hello"), "no ELF"),
        ("short", &good[..good.len() - 1], "table of sections"),
        ("program", &program, "no relocatable ELF"),
        ("plain", &ko(&[]), "no vermagic"),
        ("other", &ko(&["vermagic=6.2.0 SMP "]), "is for kernel 6.2.0, and the kernel is 6.1.0"),
    ];
    for (name, bytes, expected) in cases {
        let (_dir, kernel) = kernel(&[(&format!("{name}.ko"), bytes)]);
        let error = closure(&kernel, &[name]).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(&format!("{name}.ko")), "{error}");
    }
}

#[test]
fn a_parameter_finds_its_module() {
    let (_dir, kernel) = kvm();
    let modules = closure(&kernel, &["kvm-amd", "kvm-intel"]).unwrap();
    let assigned = |text| assign(&modules, text).map(|((m, p), v)| format!("{m} {p}={v}"));
    for (text, expected) in [
        ("ept=0", "kvm_intel ept=0"),
        ("npt=1", "kvm_amd npt=1"),
        ("mmu=", "kvm mmu="),
        ("kvm-amd.nested=0", "kvm_amd nested=0"),
        ("kvm_intel.nested=a,b", "kvm_intel nested=a,b"),
        ("irqbypass.off=1", "irqbypass off=1"),
    ] {
        assert_eq!(assigned(text).as_deref(), Ok(expected));
    }
    let error = |text| assigned(text).unwrap_err().to_string();
    assert!(error("nested=0").ends_with("write `kvm_amd.nested=0` or `kvm_intel.nested=0`"));
    let unknown = error("kvm.eptt=0");
    assert!(unknown.contains("`kvm.eptt`; the nearest is `ept`"), "{unknown}");
    assert!(unknown.contains("of kvm_intel: ept, nested"), "{unknown}");
    assert!(assign(&[], "a=1").unwrap_err().to_string().ends_with("known are none"));
    for text in ["ept", "=1", "kvm.=1", "ept=0 npt=0", "ept=\"0", ""] {
        assert!(error(text).contains("write NAME=VALUE"), "{text}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        changes in prop::collection::vec((0..512_usize, any::<u8>()), 0..12),
        cut in 0..512_usize,
        info in prop::collection::vec(any::<u8>(), 0..64),
        text in ".{0,12}",
    ) {
        let mut elf = module("a,b", &["c"]);
        for (at, value) in changes {
            let at = at % elf.len();
            elf[at] = value;
        }
        let _ = modinfo(&elf);
        elf.truncate(cut);
        let _ = modinfo(&elf);
        let _ = builtin(vec!["a".into()], &info);
        let _ = assign(&[], &text);
    }
}
