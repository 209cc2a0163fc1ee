//! Requests of a hostile guest, relayed to a hypervisor that is none.

use std::sync::Mutex;

use payload_abi::lab::{self as abi, REQUEST_SIZE, UNANSWERED, op};
use proptest::prelude::*;

use super::*;
use crate::cpu::CpuState;
use crate::hv::lab::{Advice, AttrCall, DirtyPage, Protection, Slot, Target};
use crate::hv::{Activity, Detail, HvError, Kick};
use crate::ram::Backing;

struct Still;

impl Kick for Still {
    fn kick(&self) {}
}

/// A vCPU that does not run: the lab alone is asked.
struct Parked;

impl Vcpu for Parked {
    type Kicker = Still;
    fn bind(&mut self) -> Still {
        Still
    }
    fn run(&mut self, _: Entry) -> Exit {
        Exit::Interrupted
    }
    fn start(&mut self, _: &CpuState) -> Result<(), HvError> {
        Ok(())
    }
    fn state(&self) -> Result<CpuState, HvError> {
        Ok(CpuState::default())
    }
    fn activity(&self) -> Result<Activity, HvError> {
        Ok(Activity::Runnable)
    }
    fn translate(&self, linear: u64) -> Option<u64> {
        Some(linear)
    }
    fn detail(&self) -> Detail {
        Detail::default()
    }
}

/// Lab memory of one page, registers, and the exits that completing an access leads to.
#[derive(Default)]
struct Fake {
    memory: Mutex<Vec<u8>>,
    registers: Mutex<(u64, u64)>,
    exits: Mutex<Vec<Exit>>,
}

const SIZE: usize = 4096;

impl Fake {
    fn part(&self, offset: u64, len: usize) -> Result<std::ops::Range<usize>, Errno> {
        let start = usize::try_from(offset).map_err(|_| EFAULT)?;
        let end = start.checked_add(len).filter(|&end| end <= SIZE).ok_or(EFAULT)?;
        Ok(start..end)
    }
}

impl Lab for Fake {
    type Vcpu = Parked;
    fn settle(&self, _: &mut Parked, _: Entry) -> Exit {
        self.exits.lock().expect("no panic").pop().unwrap_or(Exit::Interrupted)
    }
    fn nudge(&self, _: &mut Parked) {}
    fn registers(&self, _: &Parked) -> Result<(u64, u64), Errno> {
        Ok(*self.registers.lock().expect("no panic"))
    }
    fn set_registers(&self, _: &mut Parked, rip: u64, rflags: u64) -> Result<(), Errno> {
        *self.registers.lock().expect("no panic") = (rip, rflags);
        Ok(())
    }
    fn ioctl(
        &self,
        _: &mut Parked,
        _: Target,
        _: u32,
        bytes: &mut Vec<u8>,
        _: u64,
    ) -> Result<i64, Errno> {
        bytes.iter_mut().for_each(|b| *b ^= 0xff);
        // More than the guest has room for stays here.
        bytes.push(0x55);
        Ok(7)
    }
    fn attribute(
        &self,
        _: &mut Parked,
        _: Target,
        _: u32,
        _: u64,
        call: AttrCall,
    ) -> Result<u64, Errno> {
        if let AttrCall::Set(value) = call { Ok(value) } else { Ok(9) }
    }
    fn msr_filter(&self, _: u32, ranges: &[MsrRange]) -> Result<(), Errno> {
        let fits = |r: &MsrRange| r.bitmap.len() * 8 >= r.count as usize;
        assert!(ranges.iter().all(fits));
        Ok(())
    }
    fn memory(&self, _: u64, _: Backing) -> Result<u32, Errno> {
        Ok(0)
    }
    fn slot(&self, _: Slot) -> Result<(), Errno> {
        Ok(())
    }
    fn ram_slot(&self, gpa: u64) -> Result<(u32, u64), Errno> {
        Ok((1, gpa))
    }
    fn ram_flags(&self, _: u32, _: u32) -> Result<(), Errno> {
        Ok(())
    }
    fn read(&self, _: u32, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let part = self.part(offset, bytes.len())?;
        bytes.copy_from_slice(&self.memory.lock().expect("no panic")[part]);
        Ok(())
    }
    fn write(&self, _: u32, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let part = self.part(offset, bytes.len())?;
        self.memory.lock().expect("no panic")[part].copy_from_slice(bytes);
        Ok(())
    }
    fn advise(&self, _: Part, _: Advice) -> Result<(), Errno> {
        Ok(())
    }
    fn protect(&self, _: Part, _: Protection) -> Result<(), Errno> {
        Ok(())
    }
    fn dirty_log(&self, _: u32, most: u64) -> Result<Vec<u8>, Errno> {
        if most < 8 { Err(E2BIG) } else { Ok(vec![1; 8]) }
    }
    fn clear_dirty_log(&self, _: u32, _: u64, _: u32, _: Vec<u8>) -> Result<(), Errno> {
        Ok(())
    }
    fn harvest(&self, _: &mut Parked, most: usize) -> Result<Vec<DirtyPage>, Errno> {
        Ok(vec![DirtyPage { slot: 3, page: 4 }; most.min(5)])
    }
    fn transplant(&self, _: &mut Parked) -> Result<(), (Errno, u64)> {
        Err((EINVAL, abi::step::MSRS))
    }
    fn userfault(&self, _: Part, _: u64) -> Result<(), Errno> {
        Ok(())
    }
    fn userfaults(&self, _: u32) -> Result<u64, Errno> {
        Ok(0)
    }
    fn interrupt_window(&self, _: &mut Parked, request: Option<bool>) -> u64 {
        request.map_or(0, |on| 2 | u64::from(on))
    }
}

const AT: u64 = 0x1000;
const BUFFER: u64 = 0x2000;
const END: u64 = 2 << 20;

fn relay() -> Relay<Fake> {
    let ram = GuestRam::new(END, Backing::Auto).expect("2 MiB");
    let fake = Fake { memory: Mutex::new(vec![0; SIZE]), ..Fake::default() };
    Relay::new(fake, ram, 1)
}

fn bytes(op: u32, args: &[u64], next: u32) -> [u8; REQUEST_SIZE] {
    let mut bytes = [0; REQUEST_SIZE];
    for (i, word) in [abi::MAGIC, op, next, 0].into_iter().enumerate() {
        bytes[4 * i..4 * i + 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes[16..24].copy_from_slice(&UNANSWERED.to_le_bytes());
    for (to, arg) in bytes[32..].chunks_exact_mut(8).zip(args) {
        to.copy_from_slice(&arg.to_le_bytes());
    }
    bytes
}

fn out(at: u64) -> Exit {
    Exit::Io(Access::write(Space::Port, PORT.into(), Size::B4, at))
}

fn answer_at(relay: &Relay<Fake>, at: u64) -> (i64, u64) {
    let mut bytes = [0; REQUEST_SIZE];
    relay.ram.read(at, &mut bytes).expect("RAM");
    let request = Request::from_bytes(&bytes);
    (request.result, request.value)
}

fn ask(relay: &Relay<Fake>, op: u32, args: &[u64]) -> (i64, u64) {
    relay.ram.write(AT, &bytes(op, args, 0)).expect("RAM");
    assert_eq!(relay.handle(0, &mut Parked, &out(AT)), Ok(Entry::Resume));
    answer_at(relay, AT)
}

fn errno(relay: &Relay<Fake>, op: u32, args: &[u64]) -> i64 {
    -ask(relay, op, args).0
}

#[test]
fn bytes_go_there_and_back_and_no_further() {
    let relay = relay();
    relay.ram.write(BUFFER, &[1, 2, 3, 4]).expect("RAM");
    assert_eq!(ask(&relay, op::IOCTL, &[2, 0xae81, BUFFER, 3]), (7, 0));
    let mut found = [0; 4];
    relay.ram.read(BUFFER, &mut found).expect("RAM");
    assert_eq!(found, [0xfe, 0xfd, 0xfc, 4]);
}

#[test]
fn hostile_requests_get_an_error_number() {
    let r = relay();
    let (inval, fault, big) = (i64::from(EINVAL.0), i64::from(EFAULT.0), i64::from(E2BIG.0));
    assert_eq!(errno(&r, 0, &[]), inval);
    assert_eq!(errno(&r, u32::MAX, &[]), inval);
    assert_eq!(errno(&r, op::IOCTL, &[3, 1, 0, 0]), inval);
    assert_eq!(errno(&r, op::IOCTL, &[2, 1 << 32, 0, 0]), inval);
    assert_eq!(errno(&r, op::IOCTL, &[2, 1, END - 1, 2]), fault);
    assert_eq!(errno(&r, op::IOCTL, &[2, 1, 0xa_0000, 8]), fault);
    assert_eq!(errno(&r, op::IOCTL, &[2, 1, u64::MAX, 8]), fault);
    assert_eq!(errno(&r, op::IOCTL, &[2, 1, BUFFER, u64::MAX]), big);
    assert_eq!(errno(&r, op::IOCTL, &[2, 1, BUFFER, 8, 0, 1]), inval);
    assert_eq!(errno(&r, op::READ, &[0, u64::MAX, BUFFER, 8]), fault);
    assert_eq!(errno(&r, op::FILL, &[0, u64::MAX, 8, 0]), fault);
    assert_eq!(errno(&r, op::FILL, &[0, 0, u64::MAX, 0]), big);
    assert_eq!(errno(&r, op::HASH, &[0, SIZE as u64 - 1, 2]), fault);
    assert_eq!(errno(&r, op::MSR_FILTER, &[0, BUFFER, 17 * 16]), big);
    assert_eq!(errno(&r, op::MSR_FILTER, &[0, BUFFER, 15]), inval);
    r.ram.write(BUFFER, &[0xff; 16]).expect("RAM");
    assert_eq!(errno(&r, op::MSR_FILTER, &[0, BUFFER, 16]), big);
    assert_eq!(errno(&r, op::DIRTY_LOG, &[0, BUFFER, 7]), big);
    assert_eq!(errno(&r, op::RECORD, &[BUFFER, 64, BUFFER, 64]), inval);
    assert_eq!(errno(&r, op::RECORD, &[BUFFER, 17 * 64, BUFFER, 64]), big);
    r.ram.write(BUFFER, &[0; 64]).expect("RAM");
    assert_eq!(errno(&r, op::RECORD, &[BUFFER, 64, BUFFER, 15]), inval);
    assert_eq!(errno(&r, op::RECORD, &[BUFFER, 64, END, 16]), fault);
    assert_eq!(ask(&r, op::TRANSPLANT, &[]), (-inval, abi::step::MSRS));
    assert_eq!(r.refusal(), None);
}

#[test]
fn a_request_that_cannot_be_reached_ends_the_vm_and_says_so() {
    for at in [END - 1, 0xa_0000, 0xffff_ffff] {
        let relay = relay();
        let entry = relay.handle(0, &mut Parked, &out(at));
        assert_eq!(entry, Ok(Entry::Stop(Stop::Unexpected)));
        let why = relay.refusal().expect("a reason");
        assert!(why.contains(&format!("{at:#x}")), "{why}");
    }
}

#[test]
fn a_chain_ends() {
    let relay = relay();
    relay.ram.write(AT, &bytes(op::RAM_SLOT, &[5], AT as u32)).expect("RAM");
    let entry = relay.handle(0, &mut Parked, &out(AT));
    assert_eq!(entry, Ok(Entry::Stop(Stop::Unexpected)));
    assert!(relay.refusal().expect("a reason").contains("more than 64"));
}

#[test]
fn other_exits_are_the_boards_unless_they_are_recorded() {
    let relay = relay();
    let exit = Exit::Rdmsr { index: 0x55 };
    assert_eq!(relay.handle(0, &mut Parked, &exit), Err(exit));
    let rule = |at: u64, word: u64| relay.ram.write(BUFFER + at, &word.to_le_bytes());
    for (at, word) in [(0, abi::kind::RDMSR.into()), (8, 0x55), (16, 0x56), (24, 99)] {
        rule(at, word).expect("RAM");
    }
    // It adds 2 to RIP, and only once.
    rule(32, 2).expect("RAM");
    rule(48, 1 << 32).expect("RAM");
    let log = BUFFER + 0x1000;
    assert_eq!(ask(&relay, op::RECORD, &[BUFFER, 64, log, 16 + 64]), (0, 0));
    *relay.lab.registers.lock().expect("no panic") = (0x1000, 2);
    let other = Exit::Rdmsr { index: 0x57 };
    assert_eq!(relay.handle(0, &mut Parked, &other), Err(other));
    assert_eq!(relay.handle(0, &mut Parked, &exit), Ok(Entry::Resume));
    assert_eq!(relay.handle(0, &mut Parked, &exit), Err(exit));
    assert_eq!(*relay.lab.registers.lock().expect("no panic"), (0x1002, 2));
    let mut found = [0; 48];
    relay.ram.read(log, &mut found).expect("RAM");
    assert_eq!((found[0], found[16], found[24..26].to_vec()), (1, 8, vec![0, 0x10]));
    assert_eq!(found[40], 0x55);
}

#[test]
fn an_exit_behind_a_request_is_the_boards() {
    let relay = relay();
    relay.lab.exits.lock().expect("no panic").push(Exit::Shutdown);
    relay.ram.write(AT, &bytes(op::RAM_SLOT, &[5], 0)).expect("RAM");
    assert_eq!(relay.handle(0, &mut Parked, &out(AT)), Err(Exit::Shutdown));
    assert_eq!(answer_at(&relay, AT).0, UNANSWERED);
}

proptest! {
    #[test]
    fn any_request_is_answered(
        op in 0..24u32,
        args in proptest::array::uniform8(prop_oneof![0..16u64, 0..END, any::<u64>()]),
    ) {
        let relay = relay();
        let (result, _) = ask(&relay, op, &args);
        prop_assert!(result != UNANSWERED);
    }
}
