//! What runs without KVM, beside something that has to be done in any case.

mod support;

use benches::scenes;
use support::Pairs;

fn main() {
    let mut pairs = Pairs::new();
    for scene in scenes::all() {
        let start = |bare: bool| move || Ok(scene.timed(bare));
        pairs.measure(scene.group, scene.name, &start(true), &start(false));
    }
    pairs.leave_out("device", "virtqueue", "there is no virtqueue in the tree");
    pairs.leave_out("state", "dirty_page_reset", "nothing in the tree writes a guest's pages back");
    pairs.finish()
}
