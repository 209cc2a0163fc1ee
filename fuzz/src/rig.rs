//! Boards that are used again: memory costs system calls, and a board's table of ports more than most
//! scripts. The devices are new ones each time, so an input does the same whatever came before it.

use std::cell::RefCell;

use vmm::script::replay::{Outcome, Player};
use vmm::script::{BoardSpec, Script};

use crate::generators::{self, Generated, Room};
use crate::{Board, targets};

/// Boards of one kind.
pub struct Rig<'a> {
    board: Board<'a>,
    idle: Vec<Player<'a>>,
    room: Room,
}

impl<'a> Rig<'a> {
    /// Boards like this one.
    pub fn new(board: Board<'a>) -> Rig<'a> {
        Rig { board, idle: Vec::new(), room: Room::default() }
    }

    /// Which.
    pub fn board(&self) -> &Board<'a> {
        &self.board
    }

    /// One, just switched on.
    ///
    /// # Panics
    /// When it cannot be built.
    pub fn take(&mut self) -> Player<'a> {
        match self.idle.pop() {
            Some(mut player) => {
                player.renew().expect("a board that was built before");
                player
            }
            None => {
                Player::new(&self.board.spec, self.board.build).expect("a board that can be built")
            }
        }
    }

    /// The script that `bytes` describe, played on a board that was just taken.
    pub fn play(&mut self, bytes: &[u8], player: &mut Player<'a>) -> Generated {
        generators::play(bytes, &self.board, player, &mut self.room)
    }

    /// A script that is not needed any more, and what came of it.
    pub fn give_back_script(&mut self, script: Script, outcomes: Vec<Outcome>) {
        self.room.give_back(script, outcomes);
    }

    /// One that is not needed any more. One that a panic went through need not come back.
    pub fn give_back(&mut self, player: Player<'a>) {
        self.idle.push(player);
    }
}

/// Where a board's specification comes from; a thread has a rig for each.
type Spec = fn() -> BoardSpec;

thread_local! {
    static RIGS: RefCell<Vec<(Spec, Rig<'static>)>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with this thread's rig for the boards of a target. Not to be called from within `f`.
pub fn with<T>(spec: Spec, f: impl FnOnce(&mut Rig<'static>) -> T) -> T {
    RIGS.with_borrow_mut(|rigs| {
        // Two functions may have one address, if they do the same.
        let known = rigs.iter().position(|(of, _)| std::ptr::fn_addr_eq(*of, spec));
        let at = known.unwrap_or_else(|| {
            rigs.push((spec, Rig::new(targets::board(spec()))));
            rigs.len() - 1
        });
        f(&mut rigs[at].1)
    })
}
