//! What runs without KVM: parts of the board and of its tools, each beside something that has to be done in any
//! case. Criterion takes their time (`--bench plain`), Callgrind counts their instructions (`cargo xtask bench
//! counts`).

mod devices;
mod images;
mod scripts;
mod states;

use std::time::Instant;

use crate::Timed;

/// How often each is done where its instructions are counted, and before.
pub const COUNTED: u64 = 32;

/// Something that is done over and over.
pub type Work = Box<dyn FnMut()>;

/// A thing, and its yardstick.
pub struct Pair {
    /// The thing.
    pub ours: Work,
    /// What it is held against.
    pub bare: Work,
}

impl Pair {
    /// Both.
    pub fn new(ours: impl FnMut() + 'static, bare: impl FnMut() + 'static) -> Pair {
        Pair { ours: Box::new(ours), bare: Box::new(bare) }
    }
}

/// One of what is measured.
#[derive(Clone, Copy)]
pub struct Scene {
    /// What it is about.
    pub group: &'static str,
    /// Its name, unique in its group.
    pub name: &'static str,
    /// What it is held against, in a few words.
    pub against: &'static str,
    /// Sets it up, having looked that it does what it should.
    pub make: fn() -> Pair,
}

impl Scene {
    /// One side of it, timed.
    pub fn timed(&self, bare: bool) -> Timed<'static> {
        let pair = (self.make)();
        let mut work = if bare { pair.bare } else { pair.ours };
        Box::new(move |number| {
            let start = Instant::now();
            for _ in 0..number {
                work();
            }
            Ok(start.elapsed())
        })
    }
}

/// All of them, in the order of reports.
pub fn all() -> impl Iterator<Item = &'static Scene> {
    [devices::SCENES, states::SCENES, scripts::SCENES, images::SCENES].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scene_can_be_made_and_played_and_has_a_name_of_its_own() {
        let mut names = std::collections::BTreeSet::new();
        for scene in all() {
            assert!(names.insert((scene.group, scene.name)), "{}", scene.name);
            let Pair { mut ours, mut bare } = (scene.make)();
            for _ in 0..3 {
                ours();
                bare();
            }
        }
    }
}
