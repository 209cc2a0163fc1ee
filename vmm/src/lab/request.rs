//! What a guest asks of its lab: the bytes of a request, checked.

use payload_abi::lab::{self as abi, MAX_BUFFER, Request, advice, backing, op, target};

use crate::hv::lab::{Advice, AttrCall, Errno, Part, Protection, Slot, Target};
use crate::ram::Backing;

/// `EINVAL`.
pub const EINVAL: Errno = Errno(libc::EINVAL);
/// `EFAULT`.
pub const EFAULT: Errno = Errno(libc::EFAULT);
/// `E2BIG`.
pub const E2BIG: Errno = Errno(libc::E2BIG);

/// A buffer in guest memory; whether it is RAM is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub at: u64,
    /// Bytes, at most [`MAX_BUFFER`].
    pub len: u64,
}

/// A request that makes sense by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // `payload_abi::lab::op` tells what each is.
pub enum Op {
    Ioctl { target: Target, number: u32, buffer: Buffer, value: u64 },
    Attribute { target: Target, group: u32, attribute: u64, call: AttrCall },
    MsrFilter { flags: u32, ranges: Buffer },
    Memory { size: u64, backing: Backing },
    Slot(Slot),
    RamSlot { gpa: u64 },
    RamFlags { slot: u32, flags: u32 },
    Read { memory: u32, offset: u64, buffer: Buffer },
    Write { memory: u32, offset: u64, buffer: Buffer },
    Fill { part: Part, word: u64 },
    Hash(Part),
    Advise(Part, Advice),
    Protect(Part, Protection),
    DirtyLog { slot: u32, buffer: Buffer },
    ClearDirtyLog { slot: u32, first: u64, pages: u32, buffer: Buffer },
    Harvest(Buffer),
    Record { rules: Buffer, log: Buffer },
    Transplant,
    Userfault { part: Part, seed: u64 },
    UserfaultCount { memory: u32 },
    InterruptWindow { request: Option<bool> },
}

/// Reads the arguments of a request in their order.
struct Args<'a>(std::slice::Iter<'a, u64>);

impl Args<'_> {
    fn long(&mut self) -> u64 {
        self.0.next().copied().unwrap_or(0)
    }

    fn word(&mut self) -> Result<u32, Errno> {
        u32::try_from(self.long()).map_err(|_| EINVAL)
    }

    fn buffer(&mut self) -> Result<Buffer, Errno> {
        let (at, len) = (self.long(), self.long());
        if len > MAX_BUFFER {
            return Err(E2BIG);
        }
        at.checked_add(len).ok_or(EFAULT)?;
        Ok(Buffer { at, len })
    }

    /// A buffer of whole items, at most `most` of them.
    fn items(&mut self, size: u64, most: u64) -> Result<Buffer, Errno> {
        let buffer = self.buffer()?;
        match buffer.len {
            len if !len.is_multiple_of(size) => Err(EINVAL),
            len if len / size > most => Err(E2BIG),
            _ => Ok(buffer),
        }
    }

    fn part(&mut self) -> Result<Part, Errno> {
        Ok(Part { memory: self.word()?, offset: self.long(), len: self.long() })
    }

    fn target(&mut self) -> Result<Target, Errno> {
        match self.long() {
            target::SYSTEM => Ok(Target::System),
            target::VM => Ok(Target::Vm),
            target::VCPU => Ok(Target::Vcpu),
            _ => Err(EINVAL),
        }
    }

    fn attr_call(&mut self) -> Result<(AttrCall, u32, u64), Errno> {
        let (what, group, attribute, value) = (self.long(), self.word()?, self.long(), self.long());
        let call = match what {
            0 => AttrCall::Has,
            1 => AttrCall::Get,
            2 => AttrCall::Set(value),
            _ => return Err(EINVAL),
        };
        Ok((call, group, attribute))
    }

    fn window(&mut self) -> Result<Option<bool>, Errno> {
        match self.long() {
            0 => Ok(Some(false)),
            1 => Ok(Some(true)),
            2 => Ok(None),
            _ => Err(EINVAL),
        }
    }

    fn backing(&mut self) -> Result<Backing, Errno> {
        match self.long() {
            backing::SMALL => Ok(Backing::Small),
            backing::TRANSPARENT => Ok(Backing::Transparent),
            backing::HUGE_2M => Ok(Backing::Huge2M),
            backing::HUGE_1G => Ok(Backing::Huge1G),
            _ => Err(EINVAL),
        }
    }

    fn advice(&mut self) -> Result<Advice, Errno> {
        match self.long() {
            advice::DROP => Ok(Advice::Drop),
            advice::HUGE => Ok(Advice::Huge),
            advice::SMALL => Ok(Advice::Small),
            advice::COLLAPSE => Ok(Advice::Collapse),
            _ => Err(EINVAL),
        }
    }

    fn protection(&mut self) -> Result<Protection, Errno> {
        match self.long() {
            0 => Ok(Protection::None),
            1 => Ok(Protection::Read),
            3 => Ok(Protection::Write),
            _ => Err(EINVAL),
        }
    }
}

/// What a request asks for.
///
/// # Errors
/// `EINVAL` for an operation or an argument that there is not, `E2BIG` for a buffer that is too
/// long, `EFAULT` for one that wraps.
pub fn decode(request: &Request) -> Result<Op, Errno> {
    if request.magic != abi::MAGIC || request.reserved != 0 {
        return Err(EINVAL);
    }
    let mut a = Args(request.args.iter());
    let decoded = match request.op {
        op::IOCTL => Op::Ioctl {
            target: a.target()?,
            number: a.word()?,
            buffer: a.buffer()?,
            value: a.long(),
        },
        op::DEVICE_ATTR => {
            let target = a.target()?;
            let (call, group, attribute) = a.attr_call()?;
            Op::Attribute { target, group, attribute, call }
        }
        op::MSR_FILTER => {
            Op::MsrFilter { flags: a.word()?, ranges: a.items(16, abi::MAX_MSR_RANGES as u64)? }
        }
        op::MEMORY => Op::Memory { size: a.long(), backing: a.backing()? },
        op::SLOT => Op::Slot(Slot {
            slot: a.word()?,
            flags: a.word()?,
            gpa: a.long(),
            size: a.long(),
            memory: a.word()?,
            offset: a.long(),
        }),
        op::RAM_SLOT => Op::RamSlot { gpa: a.long() },
        op::RAM_FLAGS => Op::RamFlags { slot: a.word()?, flags: a.word()? },
        op::READ => Op::Read { memory: a.word()?, offset: a.long(), buffer: a.buffer()? },
        op::WRITE => Op::Write { memory: a.word()?, offset: a.long(), buffer: a.buffer()? },
        op::FILL => Op::Fill { part: a.part()?, word: a.long() },
        op::HASH => Op::Hash(a.part()?),
        op::ADVISE => Op::Advise(a.part()?, a.advice()?),
        op::PROTECT => Op::Protect(a.part()?, a.protection()?),
        op::DIRTY_LOG => Op::DirtyLog { slot: a.word()?, buffer: a.buffer()? },
        op::CLEAR_DIRTY_LOG => Op::ClearDirtyLog {
            slot: a.word()?,
            first: a.long(),
            pages: a.word()?,
            buffer: a.buffer()?,
        },
        op::HARVEST => Op::Harvest(a.items(16, MAX_BUFFER)?),
        op::RECORD => Op::Record {
            rules: a.items(abi::RULE_SIZE as u64, abi::MAX_RULES as u64)?,
            log: a.buffer()?,
        },
        op::TRANSPLANT => Op::Transplant,
        op::USERFAULT => Op::Userfault { part: a.part()?, seed: a.long() },
        op::USERFAULT_COUNT => Op::UserfaultCount { memory: a.word()? },
        op::INTERRUPT_WINDOW => Op::InterruptWindow { request: a.window()? },
        _ => return Err(EINVAL),
    };
    // What an operation does not use may mean something one day.
    if a.0.any(|&arg| arg != 0) {
        return Err(EINVAL);
    }
    Ok(decoded)
}
