//! A machine of its own for a test: a PATH with an imitated apt and dpkg, and a small archive.
//!
//! An imitated `.deb` is a shell script that makes the package's files in the directory it is given.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use crate::fetch::cache::{Cache, sha256};
use crate::fetch::tool::Tools;
use crate::fetch::{FetchError, Fetcher, Own, Progress};
use crate::pieces::{BochsFirmware, Program};

pub const MIRROR: &str = "http://mirror.example.invalid/debian";

/// What the user was told.
#[derive(Default)]
pub struct Told(pub Vec<String>);

impl Progress for Told {
    fn started(&mut self, what: &str, _bytes: Option<u64>) {
        self.0.push(what.to_owned());
    }
    fn at(&mut self, _bytes: u64) {}
    fn done(&mut self) {}
    fn note(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub cancel: AtomicBool,
}

const APT_GET: &str = r#"
case "$*" in
*--print-uris*) cat "$HERE/uris" ;;
*' update')
    ls "$HERE"/*.index >/dev/null 2>&1 || {
        echo "E: Failed to fetch x  Temporary failure resolving 'mirror.example.invalid'" >&2
        echo "E: Some index files failed to download. They have been ignored." >&2; exit 100; }
    [ -e "$HERE/$SUITE.index" ] || {
        echo "E: The repository 'x $SUITE Release' does not have a Release file." >&2; exit 100; } ;;
*' download '*) for a in "$@"; do case "$a" in -*|Dir*) ;; *=*)
        deb=${a%%=*}_${a#*=}_amd64.deb
        cp "$HERE/pool/$SUITE/$deb" . || exit 100
        [ -e "$HERE/corrupt" ] && echo junk >>"$deb" && [ "$(cat "$HERE/corrupt")" = once ] && rm "$HERE/corrupt"
    esac; done; : ;;
esac
"#;

const APT_CACHE: &str = r#"
found=1
for a in "$@"; do
    awk -v RS= -v ORS='\n\n' -v name="Package: $a" 'index($0, name "\n") == 1 { print; n++ } END { exit !n }' \
        "$HERE/$SUITE.index" && found=0
done
[ $found = 0 ] || { echo "E: No packages found" >&2; exit 100; }
"#;

const DPKG_DEB: &str = r#"
[ -e "$HERE/dpkg-fails" ] && { cat "$HERE/dpkg-fails" >&2; exit 2; }
sh "$2" "$3"
"#;

/// Makes a file that may be executed. Another process writes it: as long as this one has it open, so
/// has whatever another test is just starting, and a file that is open for writing is not executed.
pub fn script(path: &Path, text: &str) {
    let source = path.with_extension("text");
    fs::create_dir_all(path.parent().expect("a directory")).expect("the directory is made");
    fs::write(&source, format!("#!/bin/sh\n{text}")).expect("the text is written");
    let made = Command::new("install").arg("-m755").arg(&source).arg(path).status();
    assert!(made.expect("install").success(), "{}", path.display());
    fs::remove_file(source).expect("the text is removed");
}

/// The script of a QEMU of this version.
pub fn qemu(version: &str) -> String {
    format!(
        "case $1 in --version) echo 'QEMU emulator version {version} (Debian)' ;; \
         *) echo tcg ;; esac"
    )
}

/// The script of a Bochs of this version.
pub fn bochs(version: &str) -> String {
    format!(
        "echo '  Bochs x86 Emulator {version}' >&2\n[ \"$2\" = cpu ] && echo corei7_skylake_x; :"
    )
}

/// The start of a bzImage of this release.
pub fn bzimage(release: &str) -> Vec<u8> {
    let mut image = vec![0; 0x400];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x80_u16.to_le_bytes());
    let text = format!("{release} (someone@somewhere) #1\0");
    image[0x280..0x280 + text.len()].copy_from_slice(text.as_bytes());
    image
}

impl World {
    /// A machine with apt, whose archive has no suite yet.
    pub fn new() -> World {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let world = World { dir, cancel: AtomicBool::new(false) };
        let here = world.dir.path();
        for (name, text) in [("apt-get", APT_GET), ("apt-cache", APT_CACHE), ("dpkg-deb", DPKG_DEB)]
        {
            let head = format!(
                "HERE='{}'\nPATH=/usr/bin:/bin\necho \"{name} $*\" >>\"$HERE/log\"\n\
                 SUITE=$(echo \"$*\" | sed -n 's,.*/apt/\\([a-z]*\\)/sources.list.*,\\1,p')\n",
                here.display()
            );
            script(&here.join("bin").join(name), &(head + text));
        }
        world.write("uris", &format!("'{MIRROR}/dists/bookworm/InRelease' x 0\n"));
        world
    }

    /// A machine whose archive has everything, in both suites.
    pub fn with_archive() -> World {
        let world = World::new();
        for (suite, qemu_version, bochs_version) in
            [("trixie", "10.0.13", "3.0"), ("bookworm", "7.2.22", "2.7")]
        {
            let loader = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
            world.package(suite, "libc6", "", &[(loader, "shift 2; exec \"$@\"")]);
            let program = qemu(qemu_version);
            world.package(
                suite,
                "qemu-system-x86",
                "libc6 (>= 2), adduser, missing | other, libnone1",
                &[("usr/bin/qemu-system-x86_64", &program)],
            );
            world.package(suite, "adduser", "", &[("etc/adduser", "")]);
            for name in ["qemu-system-common", "qemu-system-data", "seabios", "ipxe-qemu"] {
                world.package(suite, name, "", &[(&format!("usr/share/qemu/{name}"), name)]);
            }
            let program = bochs(bochs_version);
            world.package(suite, "bochs", "libc6", &[("usr/bin/bochs-bin", &program)]);
            world.package(suite, "bochsbios", "", &[("usr/share/bochs/BIOS-bochs-latest", "")]);
            world.package(suite, "vgabios", "", &[("usr/share/vgabios/vgabios.bin", "")]);
            world.package(suite, "busybox-static", "", &[("usr/bin/busybox", "")]);
            let release = format!("6.1-{suite}");
            world.package(
                suite,
                "linux-image-cloud-amd64",
                &format!("linux-image-{release} (= 1)"),
                &[],
            );
            let (image, module) = (
                format!("boot/vmlinuz-{release}"),
                format!("lib/modules/{release}/kernel/arch/x86/kvm/kvm.ko"),
            );
            let files = [(&image[..], ""), (&module[..], "")];
            world.package(suite, &format!("linux-image-{release}"), "initramfs-tools", &files);
        }
        world
    }

    /// Puts a package with these files into a suite.
    pub fn package(&self, suite: &str, name: &str, depends: &str, files: &[(&str, &str)]) {
        let mut text = format!("# {name} of {suite}\n");
        for (file, contents) in files {
            text += &format!(
                "mkdir -p \"$(dirname \"$1/{file}\")\"\ncat >\"$1/{file}\" <<'EOF'\n\
                 #!/bin/sh\n{contents}\nEOF\nchmod 755 \"$1/{file}\"\n"
            );
        }
        let file = self.write(&format!("pool/{suite}/{name}_1_amd64.deb"), &text);
        let sum = sha256(&file).expect("the package is there");
        let index = self.dir.path().join(format!("{suite}.index"));
        let mut stanzas = fs::read_to_string(&index).unwrap_or_default();
        stanzas += &format!(
            "Package: {name}\nVersion: 1\nArchitecture: amd64\nInstalled-Size: 1\n\
             Depends: {depends}\nSize: {}\nSHA256: {sum}\n\n",
            text.len()
        );
        fs::write(index, stanzas).expect("the index is written");
    }

    /// Writes a file of the machine.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("the directory is made");
        fs::write(&path, text).expect("the file is written");
        path
    }

    pub fn remove(&self, name: &str) {
        let path = self.dir.path().join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        removed.expect("it is removed");
    }

    /// The commands that were run so far which hold a word.
    pub fn ran(&self, word: &str) -> usize {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(word)).count()
    }

    /// The cache.
    pub fn cache(&self) -> Cache {
        Cache { dir: self.dir.path().join("a cache") }
    }

    pub fn fetcher<'a>(&'a self, own: Own, told: &'a mut Told) -> Fetcher<'a> {
        let mut fetcher = Fetcher::new(&self.cache().dir, own, &self.cancel, told);
        fetcher.tools = Tools { path: self.dir.path().join("bin").into() };
        fetcher.suites = vec!["trixie".to_owned(), "bookworm".to_owned()];
        fetcher
    }

    pub fn qemu(&self) -> Result<Program, FetchError> {
        self.fetch(|f| f.qemu())
    }

    pub fn bochs(&self) -> Result<(Program, BochsFirmware), FetchError> {
        self.fetch(|f| f.bochs())
    }

    /// Fetches with a fetcher that is used once.
    pub fn fetch<T>(&self, what: impl FnOnce(&mut Fetcher<'_>) -> T) -> T {
        what(&mut self.fetcher(Own::default(), &mut Told::default()))
    }
}
