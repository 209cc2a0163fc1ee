//! What apt writes, read: stanzas of packages, fields of dependencies, lists of addresses.

use serde::{Deserialize, Serialize};

/// A package as apt's signed index describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Package {
    pub name: String,
    pub version: String,
    pub architecture: String,
    /// Of the `.deb`, in bytes.
    pub size: u64,
    /// Of what it unpacks to, in KiB, as its maker estimates it.
    pub installed: u64,
    /// Of the `.deb`, in lower-case hexadecimal digits.
    pub sha256: String,
    /// The packages it depends on, of each set of alternatives the first.
    #[serde(skip)]
    pub depends: Vec<String>,
}

impl Package {
    /// The name under which `apt-get download` stores it: a colon cannot stand in a file's name on
    /// every file system, so apt writes it as `%3a`.
    pub fn file(&self) -> String {
        let version = self.version.replace(':', "%3a");
        format!("{}_{version}_{}.deb", self.name, self.architecture)
    }
}

/// The packages in the output of `apt-cache show` (deb-control(5)). A stanza that lacks what is
/// needed of it, or whose values are no names, versions and sums, is left out.
pub(super) fn packages(text: &str) -> Vec<Package> {
    text.split("\n\n").filter_map(package).collect()
}

fn package(stanza: &str) -> Option<Package> {
    let field = |name: &str| {
        let mut lines = stanza.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let word = |name: &str, more: &[u8]| {
        let text = field(name)?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || more.contains(&b);
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        (starts && text.bytes().all(fits)).then(|| text.to_owned())
    };
    let number = |name: &str| field(name)?.parse::<u64>().ok();
    // Both name what must be there before the package can work.
    let depends = ["Pre-Depends", "Depends"].into_iter().filter_map(field);
    Some(Package {
        name: word("Package", b"+-.")?,
        version: word("Version", b"+-.:~")?,
        architecture: word("Architecture", b"-")?,
        size: number("Size")?,
        installed: number("Installed-Size").unwrap_or(0),
        sha256: word("SHA256", b"").filter(|sum| sum.len() == 64)?.to_ascii_lowercase(),
        depends: depends.flat_map(dependencies).collect(),
    })
}

/// The names in a dependency field, of alternatives the first: `a (>= 1) | b, c:any` is `a` and `c`.
fn dependencies(field: &str) -> Vec<String> {
    let names = field.split(',').filter_map(|dependency| {
        let dependency = dependency.trim_start();
        let is_name = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        let end = dependency.find(|c: char| !is_name(c)).unwrap_or(dependency.len());
        dependency.starts_with(|c: char| c.is_ascii_alphanumeric()).then(|| &dependency[..end])
    });
    names.map(str::to_owned).collect()
}

/// A source that apt is configured to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// What stands before `dists/`, without the slash.
    pub uri: String,
    /// The suite or codename.
    pub suite: String,
}

/// The sources in the output of `apt-get --print-uris update`, in their order. It names the signed
/// index of each, `URI/dists/SUITE/InRelease`, whether it has ever been fetched or not, whichever
/// format the configuration is in.
pub(super) fn sources(text: &str) -> Vec<Source> {
    let source = |line: &str| {
        let (address, _) = line.strip_prefix('\'')?.split_once('\'')?;
        let (uri, suite) = address.strip_suffix("/InRelease")?.rsplit_once("/dists/")?;
        let fits = |text: &str| !text.is_empty() && !text.contains(char::is_whitespace);
        (fits(uri) && fits(suite)).then(|| Source { uri: uri.to_owned(), suite: suite.to_owned() })
    };
    text.lines().filter_map(source).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SUM: &str = "6433495e013686deb83866ce49a9aec27a3c801de532358a330cd683b27e3593";

    fn stanza(more: &str) -> String {
        format!(
            "Package: bochs\nVersion: 1:3.0+dfsg-1\nArchitecture: amd64\nSize: 1921016\n\
             SHA256: {SUM}\n{more}"
        )
    }

    #[test]
    fn a_stanza_is_read() {
        let text = stanza(
            "Installed-Size: 8180\nPre-Depends: libz1\nDepends: bochs-wx | bochs-gui, bochsbios \
             (= 3.0+dfsg-1) | seabios,libc6:any (>= 2.38)\nTag: a, b,\n Depends: c\n",
        );
        let found = packages(&format!("{text}\n{text}"));
        assert_eq!(found.len(), 2);
        let package = &found[0];
        assert_eq!((package.size, package.installed), (1_921_016, 8180));
        assert_eq!(package.depends, ["libz1", "bochs-wx", "bochsbios", "libc6"]);
        assert_eq!(package.file(), "bochs_1%3a3.0+dfsg-1_amd64.deb");
        assert_eq!(package.sha256, SUM);
    }

    #[test]
    fn a_stanza_that_cannot_be_used_is_left_out() {
        let whole = stanza("");
        assert_eq!(packages(&whole).len(), 1);
        for (from, to) in [
            ("Package: bochs", "Package: --option"),
            ("Package: bochs", "Package: ../bochs"),
            ("Package: bochs\n", ""),
            ("Version: 1:3.0", "Version: 1/3.0"),
            ("Size: 1921016", "Size: much"),
            (SUM, "6433"),
            ("SHA256", "SHA1"),
        ] {
            let text = whole.replace(from, to);
            assert_ne!(text, whole);
            assert_eq!(packages(&text), [], "{text}");
        }
    }

    #[test]
    fn sources_are_read_from_addresses() {
        let text = "'http://mirror.example.invalid/debian/dists/bookworm/InRelease' x_InRelease 0 \n\
                    'http://mirror.example.invalid/debian/dists/bookworm/main/binary-amd64/Packages.xz' x 0\n\
                    'mirror+file:/etc/apt/m.list/dists/bookworm-updates/InRelease' y 0\n\
                    'http://flat.example.invalid/./InRelease' z 0\nW: something\n";
        let found = sources(text);
        let found: Vec<_> = found.iter().map(|s| (&s.uri[..], &s.suite[..])).collect();
        assert_eq!(
            found,
            [
                ("http://mirror.example.invalid/debian", "bookworm"),
                ("mirror+file:/etc/apt/m.list", "bookworm-updates"),
            ]
        );
    }

    proptest! {
        #[test]
        fn nothing_that_apt_could_write_panics(text in "[ -~\n\u{e9}]{0,200}") {
            let _ = sources(&text);
            for package in packages(&format!("{}\n{text}", stanza(&format!("Depends: {text}\n")))) {
                prop_assert!(!package.file().contains('/'));
            }
        }
    }
}
