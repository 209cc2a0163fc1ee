//! Exits of a guest on this machine's KVM, each kind beside a loop that enters the guest again and does nothing
//! else; and what making a VM and changing it takes, beside the same calls alone.

mod support;

use std::path::Path;
use std::time::Duration;

use benches::guest::Guest;
use benches::kinds::KINDS;
use benches::{Timed, vms};
use support::Pairs;
use testcases::build::{Options, build_payloads};
use testcases::facts::HostFacts;
use testcases::facts_table::FactsTable;

fn main() {
    let mut pairs = Pairs::new();
    let facts = FactsTable::collect();
    if let Err(why) = facts.kvm() {
        pairs.leave_out("exits", "*", &why);
        pairs.finish();
    }
    let image = payload().unwrap_or_else(|why| {
        eprintln!("exits: {why}");
        std::process::exit(1)
    });
    for kind in &KINDS {
        if let Some(why) = kind.missing(&facts) {
            pairs.leave_out("exits", kind.name, &why);
            continue;
        }
        let start = |bare: bool| {
            let image = &image;
            move || -> Result<Timed<'_>, String> {
                let mut guest = Some(Guest::start(image, kind, bare)?);
                Ok(Box::new(move |number| match (number, &mut guest) {
                    (0, _) => match guest.take() {
                        Some(guest) => guest.finish().map(|()| Duration::ZERO),
                        None => Ok(Duration::ZERO),
                    },
                    (number, Some(guest)) => guest.round(number),
                    (_, None) => Err("the guest has ended".to_owned()),
                }))
            }
        };
        pairs.measure("exits", kind.name, &start(true), &start(false));
    }
    for (name, make) in vms::WORKS {
        pairs.measure("vm", name, &|| make(true), &|| make(false));
    }
    pairs.finish()
}

/// The payload `trips`.
fn payload() -> Result<Vec<u8>, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no workspace")?;
    let built = build_payloads(root, &Options::default()).map_err(|e| e.to_string())?;
    let payload = built.catalog.get("trips").ok_or("there is no payload `trips`")?;
    let shown = payload.path.display();
    std::fs::read(&payload.path).map_err(|e| format!("cannot read {shown}: {e}"))
}
