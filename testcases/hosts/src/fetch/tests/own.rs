//! What the user points to, and what is on PATH.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::says;
use super::world::{Told, World, bzimage, qemu, script};
use crate::fetch::{Flavour, Own};

#[test]
fn a_flag_is_stronger_than_the_environment() {
    let flags = Own { qemu: Some("/flag".into()), ..Own::default() };
    let own = flags.or_environment(|name| match name {
        "EXITLAB_QEMU" | "EXITLAB_HOST_KERNEL" => Some("/variable".into()),
        "EXITLAB_BOCHS" => Some("".into()),
        _ => panic!("{name}"),
    });
    assert_eq!(own.qemu, Some(PathBuf::from("/flag")));
    assert_eq!(own.kernel, Some(PathBuf::from("/variable")));
    assert_eq!(own.bochs, None);
}

#[test]
fn a_good_program_on_path_is_taken_before_anything_is_fetched() {
    let world = World::with_archive();
    let path = world.dir.path().join("bin/qemu-system-x86_64");
    script(&path, &qemu("8.2.2"));
    let found = world.qemu().expect("QEMU");
    assert_eq!((&found.path, &found.version[..]), (&path, "8.2.2"));
    assert_eq!((found.loader, world.ran("apt")), (None, 0));

    for (old, why) in [
        (qemu("7.1.50"), "qemu-system-x86_64 on PATH is version 7.1.50"),
        (qemu("9.0").replace("tcg", "kvm"), "does not name tcg"),
        ("echo something else".to_owned(), "does not tell a version of QEMU"),
        ("echo no >&2; exit 3".to_owned(), "status 3: no"),
    ] {
        let world = World::new();
        script(&world.dir.path().join("bin/qemu-system-x86_64"), &old);
        says(world.qemu(), &[why, "Debian trixie"]);
    }
}

#[test]
fn what_the_user_names_is_used_or_is_an_error() {
    let world = World::with_archive();
    let path = world.dir.path().join("opt/my-qemu");
    script(&path, &qemu("6.0"));
    let take = |own: Own| world.fetcher(own, &mut Told::default()).qemu();
    let named = |path: PathBuf| take(Own { qemu: Some(path), ..Own::default() });
    assert_eq!(named(path.clone()).expect("QEMU").version, "6.0", "it is the user's choice");
    script(&world.dir.path().join("bin/other-qemu"), &qemu("9.0"));
    assert_eq!(named("other-qemu".into()).expect("QEMU").version, "9.0", "found on PATH");

    let flag = "--qemu (or EXITLAB_QEMU) names";
    says(named("/no/such/qemu".into()), &[flag, "/no/such/qemu", "no file that may be executed"]);
    says(named(world.dir.path().into()), &[flag, "no file that may be executed"]);
    let plain = world.write("plain", "");
    says(named(plain), &[flag, "no file that may be executed"]);
    says(named("/bin/true".into()), &["/bin/true", "does not tell a version of QEMU"]);
    assert_eq!(world.ran("apt"), 0, "nothing else is tried");

    let own = Own { bochs: Some("/no/such/bochs".into()), ..Own::default() };
    let bochs = world.fetcher(own, &mut Told::default()).bochs();
    says(bochs, &["--bochs (or EXITLAB_BOCHS) names /no/such/bochs"]);
}

#[test]
fn a_kernel_of_the_users_own_is_found_with_its_modules() {
    let world = World::new();
    let named = |path: PathBuf| {
        let own = Own { kernel: Some(path), ..Own::default() };
        world.fetcher(own, &mut Told::default()).kernel(Flavour::Full)
    };
    let root = world.dir.path().canonicalize().expect("a directory").join("root");
    let image = root.join("boot/vmlinuz-6.9.1-mine");
    fs::create_dir_all(root.join("boot")).expect("a directory");
    fs::write(&image, bzimage("6.9.1-mine")).expect("an image");
    let says_where = ["the kernel 6.9.1-mine", "lib/modules/6.9.1-mine", "INSTALL_MOD_PATH"];
    says(named(image.clone()), &says_where);

    let modules = root.join("lib/modules/6.9.1-mine");
    fs::create_dir_all(modules.join("kernel")).expect("a directory");
    symlink("vmlinuz-6.9.1-mine", root.join("boot/vmlinuz")).expect("a link");
    for path in [&image, &root, &root.join("boot/vmlinuz")] {
        let kernel = named(path.clone()).expect("a kernel");
        assert_eq!((&kernel.image, &kernel.modules), (&image, &modules), "{}", path.display());
        assert_eq!(kernel.release, "6.9.1-mine");
    }

    fs::write(root.join("bzImage"), bzimage("6.10")).expect("an image");
    says(named(root.clone()), &["several kernels", "bzImage", "vmlinuz"]);
    let empty = world.dir.path().join("bin");
    says(named(empty), &["--host-kernel (or EXITLAB_HOST_KERNEL)", "holds no bzImage"]);
    let odd = world.write("odd/boot/vmlinuz-1", "").ancestors().nth(2).map(PathBuf::from);
    says(named(odd.expect("a directory")), &["holds no bzImage", "vmlinuz-1: it is no bzImage"]);
    says(named("/no/such/kernel".into()), &["/no/such/kernel", "No such file"]);
    for (bad, why) in [
        (vec![0; 0x400], "it is no bzImage"),
        (bzimage(""), "names no release"),
        (bzimage(".."), "is no name"),
        (bzimage("6.9/../.."), "is no name"),
    ] {
        let file = world.dir.path().join("bad");
        fs::write(&file, bad).expect("a file");
        says(named(file), &["--host-kernel (or EXITLAB_HOST_KERNEL)", "/bad", why]);
    }
}
