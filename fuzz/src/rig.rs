//! Boards that are used again: memory costs system calls, and a board's table of ports more than most
//! scripts. The devices are new ones each time, so an input does the same whatever came before it.

use std::cell::RefCell;

use vmm::script::BoardSpec;
use vmm::script::replay::Player;

use crate::{Board, targets};

/// Boards of one kind.
pub struct Rig<'a> {
    board: Board<'a>,
    idle: Vec<Player<'a>>,
}

impl<'a> Rig<'a> {
    /// Boards like this one.
    pub fn new(board: Board<'a>) -> Rig<'a> {
        Rig { board, idle: Vec::new() }
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
