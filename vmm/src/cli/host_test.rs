//! `vmm host-test`.

use std::io;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use vmm::host::test::HostTest as Test;

use super::complain;

/// Exit status when the report cannot be written.
const UNTOLD: u8 = 14;

/// Test what a VMM takes from this machine, without a guest. The report on standard output and the
/// exit status are those of a payload: 1 pass, 3 fail, 77 skip.
#[derive(Debug, Args)]
pub struct HostTest {
    /// The test: vfio takes the first PCI device that is bound to vfio-pci.
    #[arg(value_name = "NAME", value_parser = names())]
    test: Test,
}

fn names() -> impl TypedValueParser<Value = Test> {
    let known = |name: String| Test::named(&name).ok_or("no such test");
    PossibleValuesParser::new(Test::ALL.map(Test::name)).try_map(known)
}

impl HostTest {
    /// Tests; gives the exit status.
    pub fn main(self) -> u8 {
        match self.test.run(&mut io::stdout().lock()) {
            Ok(value) => value.status(),
            Err(e) => {
                complain(&e);
                UNTOLD
            }
        }
    }
}
