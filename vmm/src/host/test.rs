//! Tests of what a VMM takes from its host, without a guest. They report as a payload does.

use std::io::{self, Write};
use std::path::Path;

use payload_abi::{ExitValue, MARK};

use super::vfio::{Assigned, Bound};

/// Where a page is mapped for a device's DMA: any address will do, in the reach of 32 bits.
const DMA_ADDRESS: u64 = 0x10_0000;

/// A test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostTest {
    /// A device that is bound to vfio-pci can be taken and used.
    Vfio,
}

/// What a test measures: a word and a figure each.
type Values = Vec<(&'static str, u64)>;

/// An end before the last step, and why.
type Ended = (ExitValue, String);

impl HostTest {
    /// All of them.
    pub const ALL: [HostTest; 1] = [HostTest::Vfio];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            HostTest::Vfio => "vfio",
        }
    }

    /// The test of this name.
    pub fn named(name: &str) -> Option<HostTest> {
        HostTest::ALL.into_iter().find(|test| test.name() == name)
    }

    /// Runs it, and writes its report: the lines that [`payload_abi::Line`] reads. Returns what a
    /// guest would write to the exit port.
    ///
    /// # Errors
    ///
    /// The report cannot be written.
    pub fn run(self, report: &mut dyn Write) -> io::Result<ExitValue> {
        let name = self.name();
        writeln!(report, "{MARK}begin {name}")?;
        let mut values = Values::new();
        let ended = match self {
            HostTest::Vfio => vfio(Path::new("/"), &mut values),
        };
        for (key, value) in values {
            writeln!(report, "{MARK}value {name} {key} {value}")?;
        }
        let (value, reason) = match ended {
            Ok(()) => (ExitValue::Pass, String::new()),
            Err((value, reason)) => (value, format!(": {reason}")),
        };
        writeln!(report, "{MARK}{} {name}{reason}", value.word())?;
        report.flush()?;
        Ok(value)
    }
}

/// Takes the first device that is bound to vfio-pci, on the machine whose files are below `root`.
fn vfio(root: &Path, values: &mut Values) -> Result<(), Ended> {
    let fail = |e: &dyn std::error::Error| (ExitValue::Fail, e.to_string());
    let bound = Bound::find(root).map_err(|e| (ExitValue::Skip, e.to_string()))?;
    values.push(("group", bound.group.into()));
    let device = Assigned::take(&bound).map_err(|e| fail(&e))?;
    values.push(("regions", device.regions() as u64));
    values.push(("irqs", device.irqs().into()));
    let check_id = |when: &str| match device.id() {
        id if id == bound.id => Ok(()),
        (vendor, kind) => Err((
            ExitValue::Fail,
            format!(
                "{when}, the configuration space of PCI device {} reads {vendor:04x}:{kind:04x}, and \
                 /sys has {:04x}:{:04x}",
                bound.address, bound.id.0, bound.id.1
            ),
        )),
    };
    check_id("when it was taken")?;
    if device.regions() == 0 {
        let reason = format!("PCI device {} has no region at all", bound.address);
        return Err((ExitValue::Fail, reason));
    }
    device.map_once(DMA_ADDRESS).map_err(|e| fail(&e))?;
    // What was unmapped can be mapped again.
    device.map_once(DMA_ADDRESS).map_err(|e| fail(&e))?;
    device.reset();
    check_id("after a reset")
}

#[cfg(test)]
mod tests {
    use payload_abi::Line;

    use super::*;

    #[test]
    fn where_no_device_is_bound_the_test_is_skipped_with_the_reason() {
        let mut values = Values::new();
        let (value, reason) = vfio(Path::new("/no/such/root"), &mut values).unwrap_err();
        assert_eq!((value, values), (ExitValue::Skip, vec![]));
        assert!(reason.contains("/no/such/root/dev/vfio/vfio is not there"), "{reason}");
    }

    #[test]
    fn the_report_is_one_that_a_runner_reads() {
        for test in HostTest::ALL {
            let mut report = Vec::new();
            let value = test.run(&mut report).expect("a report");
            let text = String::from_utf8(report).expect("text");
            let lines: Vec<_> = text.lines().map(|line| Line::parse(line).expect(line)).collect();
            assert_eq!(lines.first(), Some(&Line::Begin(test.name())));
            assert!(
                matches!(lines.last(), Some(Line::End { value: said, name, .. })
                    if *said == value && *name == test.name()),
                "{text}"
            );
        }
    }
}
