//! Fetching on machines with an imitated apt.

mod own;
mod world;

use std::fs;
use std::sync::atomic::Ordering;

use super::piece::Piece;
use super::{FetchError, Fetcher, Flavour, Own, codename};
use world::{MIRROR, Told, World, bochs, script};

/// The error's text, which must have all of `words`.
#[track_caller]
fn says<T: std::fmt::Debug>(result: Result<T, FetchError>, words: &[&str]) -> String {
    let text = result.expect_err("an error").to_string();
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
    assert!(!text.contains('\n'), "more than a paragraph: {text}");
    text
}

#[test]
fn what_was_fetched_is_there_again_without_apt() {
    let world = World::with_archive();
    let all = |f: &mut Fetcher<'_>| {
        let kernel = f.kernel(Flavour::Cloud).expect("a kernel");
        let programs = (f.qemu().expect("QEMU"), f.bochs().expect("Bochs"));
        (programs, kernel, f.busybox().expect("busybox"))
    };
    let first = world.fetch(all);
    let ((qemu, (bochs, firmware)), kernel, busybox) = &first;
    assert_eq!((&qemu.version[..], &bochs.version[..]), ("10.0.13", "3.0"));
    assert_eq!(qemu.origin, "package qemu-system-x86 1 of Debian trixie");
    assert_eq!(kernel.release, "6.1-trixie");
    for file in [&kernel.image, &firmware.bios, &firmware.vga, busybox] {
        assert!(file.is_file(), "{}", file.display());
    }
    assert!(kernel.modules.join("kernel").is_dir());
    assert_eq!(qemu.command().arg("--version").output().expect("it runs").status.code(), Some(0));
    assert_eq!(world.ran("debs update"), 1, "the index is fetched once");
    assert_eq!(world.ran("adduser"), 0, "it is no library");
    world.remove("bin");
    assert_eq!(world.fetch(all), first);
}

#[test]
fn a_package_that_was_damaged_on_the_way_is_fetched_again_once() {
    let world = World::with_archive();
    world.write("corrupt", "once");
    world.qemu().expect("the second time it is right");
    let downloads = world.ran(" download ");
    assert_eq!(downloads, 2);

    let world = World::with_archive();
    world.write("corrupt", "always");
    says(world.qemu(), &["a cache/debs/ipxe-qemu_1_amd64.deb", "SHA-256", "mirror"]);
    assert_eq!((world.ran(" download "), world.ran("dpkg-deb")), (2, 0));
    world.remove("corrupt");
    world.qemu().expect("nothing bad was kept");
}

#[test]
fn a_damaged_tree_is_made_again_from_its_packages() {
    let world = World::with_archive();
    let qemu = world.qemu().expect("QEMU");
    let (asked, unpacked) = (world.ran("apt-get"), world.ran("dpkg-deb"));
    fs::write(&qemu.path, "").expect("it is cut short");
    assert_eq!(world.qemu().expect("QEMU"), qemu);
    assert_eq!((world.ran("apt-get"), world.ran("dpkg-deb")), (asked, 2 * unpacked));

    fs::remove_file(&qemu.path).expect("it is lost");
    world.write("a cache/debs/seabios_1_amd64.deb", "damaged");
    assert_eq!(world.qemu().expect("QEMU"), qemu);
    assert_eq!(world.ran(" download -q seabios=1"), 1, "and no other package");

    world.write("a cache/qemu.json", "{\"format\": 1, ");
    assert_eq!(world.qemu().expect("QEMU"), qemu);
}

#[test]
fn without_network_one_paragraph_says_what_to_do() {
    let world = World::new();
    let text = says(
        world.qemu(),
        &[
            "QEMU cannot be had",
            "no qemu-system-x86_64 on PATH",
            &format!("Debian trixie from {MIRROR}: `apt-get update`"),
            "Temporary failure resolving",
            "--qemu",
            "EXITLAB_QEMU",
        ],
    );
    assert!(text.len() < 600 && !text.contains(".."), "{text}");
    says(world.fetch(|f| f.kernel(Flavour::Full)), &["--host-kernel", "EXITLAB_HOST_KERNEL"]);
    // What cannot be reached is not tried for every piece anew.
    let before = world.ran("debs update");
    world.fetch(|f| (f.qemu().is_err(), f.busybox().is_err()));
    assert_eq!(world.ran("debs update") - before, 1, "nor for every suite");
}

#[test]
fn without_debian_one_paragraph_says_what_to_do() {
    let world = World::with_archive();
    world.remove("bin/apt-cache");
    says(world.bochs(), &["no apt-cache on PATH", "--bochs", "EXITLAB_BOCHS"]);

    let world = World::with_archive();
    world.write("uris", "'http://other.example.invalid/linux/dists/noble/InRelease' x 0\n");
    says(world.bochs(), &["no Debian archive", "--bochs"]);
}

#[test]
fn a_full_disk_is_told_as_such() {
    let world = World::with_archive();
    world.write("dpkg-fails", "dpkg-deb: error: failed to write: No space left on device");
    says(world.qemu(), &["a cache/unpacking-0", "MB are free", "CARGO_TARGET_DIR"]);
    assert_eq!(world.ran("dpkg-deb"), 1, "another suite would not fit either");
    world.remove("dpkg-fails");
    world.qemu().expect("with room it goes on");

    let world = World::with_archive();
    let index = world.dir.path().join("trixie.index");
    let text = fs::read_to_string(&index).expect("the index");
    let huge = format!("Installed-Size: {}", u64::MAX >> 20);
    fs::write(index, text.replacen("Installed-Size: 1", &huge, 1)).expect("it is written");
    says(world.qemu(), &["a cache/debs", "it takes about 18014398", "MB are free"]);
    assert_eq!(world.ran(" download "), 0);
}

#[test]
fn what_was_interrupted_is_not_used() {
    let world = World::with_archive();
    world.write("dpkg-fails", "dpkg-deb: error: archive is broken");
    says(world.qemu(), &["`dpkg-deb", "archive is broken", "--qemu"]);
    // What a killed process leaves: some of the files, and no record.
    world.write("a cache/unpacking-0/usr/bin/qemu-system-x86_64", "half");
    world.write("a cache/qemu.json.new", "{");
    world.remove("dpkg-fails");
    let qemu = world.qemu().expect("QEMU");
    assert_eq!(qemu.version, "10.0.13");
    let left = |dir: &str| fs::read_dir(world.cache().dir.join(dir)).expect("a directory").count();
    assert_eq!((left("trees"), left("")), (1, 5), "lock, debs, trees, apt and a record");

    world.cancel.store(true, Ordering::Relaxed);
    assert!(matches!(world.bochs(), Err(FetchError::Cancelled)));
    assert!(world.cache().record(Piece::Bochs.key()).is_none());
    world.cancel.store(false, Ordering::Relaxed);
    world.bochs().expect("Bochs");
}

#[test]
fn the_machines_own_suite_is_the_second_choice() {
    // The newest is not on the mirror.
    let world = World::with_archive();
    world.remove("trixie.index");
    let mut told = Told::default();
    let qemu = world.fetcher(Own::default(), &mut told).qemu().expect("QEMU");
    assert_eq!((&qemu.version[..], world.ran("/apt/trixie/")), ("7.2.22", 1));
    assert!(told.0.iter().any(|text| text.contains("Debian trixie")), "{:?}", told.0);

    // What is in it does not run here.
    let world = World::with_archive();
    let broken = "echo 'version `GLIBC_2.99 not found' >&2; exit 1";
    world.package("trixie", "libz9", "", &[]);
    let text = fs::read_to_string(world.dir.path().join("trixie.index")).expect("the index");
    let without = text.split("\n\n").filter(|s| !s.starts_with("Package: bochs\n"));
    let without = without.collect::<Vec<_>>().join("\n\n");
    world.write("trixie.index", &without);
    world.package("trixie", "bochs", "libc6", &[("usr/bin/bochs-bin", broken)]);
    let (bochs, _) = world.bochs().expect("Bochs");
    assert_eq!(bochs.version, "2.7");

    // A mirror that is not Debian's does not end the search.
    let world = World::with_archive();
    world.remove("bookworm.index");
    let other = "'http://other.example.invalid/debian/dists/bookworm/InRelease' x 0\n";
    let uris = fs::read_to_string(world.dir.path().join("uris")).expect("addresses");
    world.write("uris", &format!("{other}{uris}"));
    world.qemu().expect("QEMU");
}

#[test]
fn only_a_debian_has_a_suite_of_its_own() {
    let debian = "NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=bookworm\nID=debian\n";
    assert_eq!(codename(debian), Some("bookworm"));
    assert_eq!(codename("ID=\"debian\"\nVERSION_CODENAME=\"trixie\""), Some("trixie"));
    for other in ["ID=ubuntu\nVERSION_CODENAME=noble", "ID=debian", "VERSION_CODENAME=x", ""] {
        assert_eq!(codename(other), None, "{other}");
    }
}

#[test]
fn an_older_bochs_on_path_is_used_if_a_newer_one_cannot_be_fetched() {
    let world = World::with_archive();
    let program = world.dir.path().join("bin/bochs");
    script(&program, &bochs("2.7"));
    world.write("share/bochs/BIOS-bochs-latest", "");
    world.write("share/bochs/VGABIOS-lgpl-latest", "");
    assert_eq!(world.bochs().expect("Bochs").0.version, "3.0");
    world.remove("a cache");
    world.remove("trixie.index");
    let (found, firmware) = world.bochs().expect("Bochs");
    assert_eq!((&found.path, &found.version[..]), (&program, "2.7"));
    assert_eq!(firmware.bios, world.dir.path().join("share/bochs/BIOS-bochs-latest"));
    assert_eq!(world.ran("/apt/bookworm/"), 0);

    // A new one is taken at once; its firmware may come from packages.
    let asked = world.ran("apt-get");
    script(&program, &bochs("3.0"));
    assert_eq!(world.bochs().expect("Bochs").0.path, program);
    assert_eq!(world.ran("apt-get"), asked);
}

#[test]
fn processes_that_fetch_at_once_fetch_once() {
    let world = World::with_archive();
    let found = std::thread::scope(|scope| {
        let both = [(), ()].map(|()| scope.spawn(|| world.qemu().expect("QEMU")));
        both.map(|thread| thread.join().expect("no panic"))
    });
    assert_eq!(found[0], found[1]);
    assert_eq!(world.ran(" download "), 1);
}

#[test]
fn a_file_in_the_way_of_the_cache_is_named() {
    let world = World::with_archive();
    world.write("a cache", "");
    says(world.qemu(), &["cannot create", "a cache", "remove it"]);
}
