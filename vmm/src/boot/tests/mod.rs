//! Images built by hand: those that load, those that must not, and those that chance makes.

mod entries;
mod image;
mod kvm;
mod malformed;
mod memory;
mod properties;

use super::{Loaded, Request, load};
use crate::ram::{Backing, GuestRam};

const MIB: u64 = 1 << 20;

fn ram(size: u64) -> GuestRam {
    GuestRam::new(size, Backing::Auto).expect("the host has a little memory")
}

#[track_caller]
fn loaded(request: &Request<'_>) -> Loaded {
    match load(request) {
        Ok(loaded) => loaded,
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn refused(request: &Request<'_>) -> String {
    match load(request) {
        Ok(loaded) => panic!("was loaded:\n{loaded}"),
        Err(error) => error.to_string(),
    }
}

fn bytes<const N: usize>(ram: &GuestRam, at: u64) -> [u8; N] {
    let mut b = [0; N];
    ram.read(at, &mut b).expect("RAM");
    b
}

fn u32_at(ram: &GuestRam, at: u64) -> u32 {
    u32::from_le_bytes(bytes(ram, at))
}

fn u64_at(ram: &GuestRam, at: u64) -> u64 {
    u64::from_le_bytes(bytes(ram, at))
}

fn string_at(ram: &GuestRam, at: u64) -> String {
    let text = (at..).map(|at| bytes::<1>(ram, at)[0]).take_while(|&b| b != 0).collect();
    String::from_utf8(text).expect("UTF-8")
}

fn dirty(ram: &GuestRam) -> Vec<u64> {
    let mut pages = Vec::new();
    ram.take_dirty(|page| pages.push(page));
    pages
}
