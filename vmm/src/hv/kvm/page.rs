//! The page that a vCPU shares with KVM: what it says of an exit, and the answer put into it.

use kvm_bindings::*;

use crate::access::{Access, Dir, Size, Space};
use crate::exit::{Exit, SystemEvent};
use crate::hv::{Answers, Detail};

/// Where the data of port accesses lie: on x86, KVM has them on the second page (`KVM_PIO_PAGE_OFFSET`).
const PORT_DATA: usize = 4096;

/// What the next entry has to complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Nothing,
    /// Items of a port access: `left` of them, the first at `at` in the page.
    Port {
        at: usize,
        left: u32,
        size: Size,
        port: u16,
        write: bool,
    },
    /// Bytes `done..len` of an MMIO access; the piece at hand is `size` wide.
    Mmio {
        addr: u64,
        done: u8,
        len: u8,
        size: Size,
        write: bool,
    },
    Msr,
    Hypercall,
    HypervCall,
    HypervDebug,
}

/// The shared page (the first of the vCPU's mapping), and the access that is under way.
#[derive(Debug)]
pub(super) struct RunPage {
    page: *mut kvm_run,
    len: usize,
    pending: Pending,
}

// SAFETY: the mapping belongs to the vCPU that owns this value, and moves with it.
unsafe impl Send for RunPage {}

impl RunPage {
    /// # Safety
    /// `page` is the start of a vCPU's mapping of `len` bytes, which outlives this value, and
    /// nobody else writes through it.
    pub(super) unsafe fn new(page: *mut kvm_run, len: usize) -> RunPage {
        assert!(len >= PORT_DATA + 8, "KVM's shared page has {len} bytes, and none for ports");
        RunPage { page, len, pending: Pending::Nothing }
    }

    #[inline]
    fn exit_reason(&self) -> u32 {
        // SAFETY: `new`'s promise; KVM writes the page only during KVM_RUN, which this thread makes.
        // No reference to the page is made, here or below: a signal handler of this thread writes
        // one byte of it at any time.
        unsafe { (*self.page).exit_reason }
    }

    /// What comes with the exit: the exit reason says which member holds. It is not the part of the
    /// page that a signal handler writes.
    #[inline]
    fn data_of_exit(&self) -> *mut kvm_run__bindgen_ty_1 {
        // SAFETY: the field lies inside the page.
        unsafe { &raw mut (*self.page).__bindgen_anon_1 }
    }

    /// `immediate_exit`: set by a signal handler of the same thread, hence never through a reference.
    pub(super) fn immediate_exit(&self) -> *mut u8 {
        // SAFETY: the field lies inside the page.
        unsafe { &raw mut (*self.page).immediate_exit }
    }

    pub(super) fn set_immediate_exit(&self) {
        // SAFETY: a byte of the page.
        unsafe { self.immediate_exit().write_volatile(1) };
    }

    pub(super) fn clear_immediate_exit(&self) {
        // SAFETY: a byte of the page.
        unsafe { self.immediate_exit().write_volatile(0) };
    }

    /// Has KVM_RUN end when the guest can take an interrupt, or no more.
    pub(super) fn request_interrupt_window(&mut self, on: bool) {
        // SAFETY: a byte of the page, which only this thread writes.
        unsafe { (*self.page).request_interrupt_window = on.into() };
    }

    /// What the last KVM_RUN said of interrupts, CR8 and the vCPU's mode, as the lab gives it.
    pub(super) fn interrupt_window(&self) -> u64 {
        // SAFETY: plain numbers inside the page, written during KVM_RUN alone.
        let (ready, flag, cr8, flags) = unsafe {
            let page = self.page;
            let ready = (*page).ready_for_interrupt_injection;
            (ready, (*page).if_flag, (*page).cr8, (*page).flags)
        };
        let bit = |byte: u8| u64::from(byte != 0);
        bit(ready) | bit(flag) << 1 | (cr8 & 15) << 4 | u64::from(flags) << 16
    }

    /// A pointer to `size` bytes of data at `at`, if they lie in the mapping.
    #[inline]
    fn data(&self, at: usize, size: Size) -> Option<*mut u8> {
        let end = at.checked_add(size.bytes() as usize)?;
        // SAFETY: `at` is inside the mapping.
        (end <= self.len).then(|| unsafe { self.page.cast::<u8>().add(at) })
    }

    #[inline]
    fn load(&self, at: usize, size: Size) -> u64 {
        let Some(p) = self.data(at, size) else { return size.mask() };
        // SAFETY: `data` checked the bounds; the reads need no alignment.
        unsafe {
            match size {
                Size::B1 => p.read().into(),
                Size::B2 => p.cast::<u16>().read_unaligned().into(),
                Size::B4 => p.cast::<u32>().read_unaligned().into(),
                Size::B8 => p.cast::<u64>().read_unaligned(),
            }
        }
    }

    #[inline]
    fn store(&mut self, at: usize, size: Size, value: u64) {
        let Some(p) = self.data(at, size) else { return };
        // SAFETY: `data` checked the bounds; the writes need no alignment.
        unsafe {
            match size {
                Size::B1 => p.write(value as u8),
                Size::B2 => p.cast::<u16>().write_unaligned(value as u16),
                Size::B4 => p.cast::<u32>().write_unaligned(value as u32),
                Size::B8 => p.cast::<u64>().write_unaligned(value),
            }
        }
    }

    /// Has `board` answer the exit that just happened, and completes it, if it is for one access of a
    /// natural width; `false` if it is not. What the board does is compiled into each of the four ways, so
    /// that it is known there whether a port is read or memory written.
    ///
    /// Eight bytes are read and written whatever the width: KVM takes as many as the guest asked for, and
    /// there are as many, in its structure for MMIO and in the page of its own for ports.
    #[inline(always)]
    pub(super) fn answer(&mut self, board: &mut impl Answers) -> bool {
        let reason = self.exit_reason();
        // SAFETY: in each arm, the exit reason says which member of the union holds; the data lies in the
        // page, of which `new` saw enough, and no reference to it is made.
        unsafe {
            if reason == KVM_EXIT_IO {
                let io = &raw const (*self.data_of_exit()).io;
                let Some(size) = Size::from_byte((*io).size) else { return false };
                if (*io).count != 1 || (*io).data_offset != PORT_DATA as u64 {
                    return false;
                }
                let data = self.page.cast::<u8>().add(PORT_DATA).cast();
                let (addr, write) = ((*io).port.into(), (*io).direction == KVM_EXIT_IO_OUT as u8);
                answer(board, Space::Port, addr, size, data, write);
            } else if reason == KVM_EXIT_MMIO {
                let mmio = &raw mut (*self.data_of_exit()).mmio;
                // KVM gives 8 at most.
                let Some(size) = Size::from_byte((*mmio).len as u8) else { return false };
                let data = (&raw mut (*mmio).data).cast();
                let (addr, write) = ((*mmio).phys_addr, (*mmio).is_write != 0);
                answer(board, Space::Mmio, addr, size, data, write);
            } else {
                return false;
            }
        }
        true
    }

    /// Completes the item at hand. `read` is what a read gets, `None` where the board refused an
    /// MSR access. Gives the next item of the same exit, if there is one.
    #[inline]
    pub(super) fn complete(&mut self, read: Option<u64>) -> Option<Exit> {
        match self.pending {
            Pending::Nothing => None,
            Pending::Port { at, left, size, port, write } => {
                if !write {
                    self.store(at, size, read.unwrap_or(size.mask()));
                }
                if left <= 1 {
                    self.pending = Pending::Nothing;
                    return None;
                }
                let at = at + size.bytes() as usize;
                self.pending = Pending::Port { at, left: left - 1, size, port, write };
                Some(self.port_item(at, size, port, write))
            }
            Pending::Mmio { addr, done, len, size, write } => {
                if !write {
                    self.store(mmio_data(done), size, read.unwrap_or(size.mask()));
                }
                self.mmio_item(addr, done + size.bytes() as u8, len, write)
            }
            Pending::Msr => {
                // SAFETY: the last exit was for an MSR; the member is plain numbers.
                let msr = unsafe { &mut (*self.data_of_exit()).msr };
                match read {
                    Some(value) => (msr.data, msr.error) = (value, 0),
                    None => msr.error = 1,
                }
                self.pending = Pending::Nothing;
                None
            }
            Pending::Hypercall => {
                // SAFETY: the last exit was a hypercall; the member is plain numbers.
                unsafe { (*self.data_of_exit()).hypercall.ret = read.unwrap_or(0) };
                self.pending = Pending::Nothing;
                None
            }
            Pending::HypervCall => {
                // SAFETY: the last exit was a Hyper-V hypercall; the member is plain numbers.
                unsafe { (*self.data_of_exit()).hyperv.u.hcall.result = read.unwrap_or(0) };
                self.pending = Pending::Nothing;
                None
            }
            Pending::HypervDebug => {
                // SAFETY: the last exit was the synthetic debugger's; the member is plain numbers.
                unsafe { (*self.data_of_exit()).hyperv.u.syndbg.status = read.unwrap_or(0) };
                self.pending = Pending::Nothing;
                None
            }
        }
    }

    #[inline]
    fn port_item(&self, at: usize, size: Size, port: u16, write: bool) -> Exit {
        let dir = if write { Dir::Write(self.load(at, size)) } else { Dir::Read };
        Exit::Io(Access { space: Space::Port, addr: port.into(), size, dir })
    }

    /// The piece of an MMIO access that begins `done` bytes into it, or `None` after the last. KVM
    /// gives 1 to 8 bytes: an access over the edge of a page comes in two parts of any length.
    #[inline]
    fn mmio_item(&mut self, addr: u64, done: u8, len: u8, write: bool) -> Option<Exit> {
        if done >= len {
            self.pending = Pending::Nothing;
            return None;
        }
        let at = addr.wrapping_add(done.into());
        // An access of a natural width stays whole, whatever its alignment: the bus decides.
        let size = match Size::from_bytes(len.into()) {
            Some(size) if done == 0 => size,
            _ => Size::widest(at, (len - done).into()),
        };
        self.pending = Pending::Mmio { addr, done, len, size, write };
        let dir = if write { Dir::Write(self.load(mmio_data(done), size)) } else { Dir::Read };
        Some(Exit::Io(Access { space: Space::Mmio, addr: at, size, dir }))
    }

    /// Whether the exit that just happened is an access, and none of port `end`.
    #[inline]
    pub(super) fn is_past(&self, end: u16) -> bool {
        match self.exit_reason() {
            // SAFETY: the exit reason says which member of the union holds.
            KVM_EXIT_IO => unsafe { (*self.data_of_exit()).io.port != end },
            reason => reason == KVM_EXIT_MMIO,
        }
    }

    /// What KVM says of the exit that just happened.
    #[inline]
    pub(super) fn decode(&mut self, vcpu: u32) -> Exit {
        match self.exit_reason() {
            KVM_EXIT_IO => {
                // SAFETY: the exit reason says which member of the union holds.
                let io = unsafe { (*self.data_of_exit()).io };
                let Some(size) = Size::from_bytes(io.size.into()) else {
                    return Exit::Unknown(KVM_EXIT_IO);
                };
                let (at, port) = (io.data_offset as usize, io.port);
                let write = u32::from(io.direction) == KVM_EXIT_IO_OUT;
                self.pending = Pending::Port { at, left: io.count, size, port, write };
                self.port_item(at, size, port, write)
            }
            KVM_EXIT_MMIO => {
                // SAFETY: the exit reason says which member of the union holds.
                let mmio = unsafe { (*self.data_of_exit()).mmio };
                let len = mmio.len.min(8) as u8;
                match self.mmio_item(mmio.phys_addr, 0, len, mmio.is_write != 0) {
                    Some(exit) => exit,
                    None => Exit::Unknown(KVM_EXIT_MMIO),
                }
            }
            KVM_EXIT_HYPERV => self.decode_hyperv(vcpu),
            reason => self.decode_rare(reason),
        }
    }

    /// VP indices are those of vCPUs: nobody sets others.
    #[cold]
    fn decode_hyperv(&mut self, vcpu: u32) -> Exit {
        // SAFETY: the exit reason says that this member of the union holds.
        let exit = unsafe { (*self.data_of_exit()).hyperv };
        // SAFETY: in each arm, the exit's type says which member of its union holds.
        let (exit, pending) = unsafe {
            match exit.type_ {
                KVM_EXIT_HYPERV_SYNIC => {
                    let s = exit.u.synic;
                    let exit = Exit::HypervSynic {
                        vp: vcpu as u16,
                        msr: s.msr,
                        control: s.control,
                        events: s.evt_page,
                        messages: s.msg_page,
                    };
                    (exit, Pending::Nothing)
                }
                KVM_EXIT_HYPERV_HCALL => {
                    let call = exit.u.hcall;
                    let exit = Exit::HypervCall { input: call.input, params: call.params };
                    (exit, Pending::HypervCall)
                }
                KVM_EXIT_HYPERV_SYNDBG => {
                    (Exit::HypervDebug { msr: exit.u.syndbg.msr }, Pending::HypervDebug)
                }
                _ => (Exit::Unknown(KVM_EXIT_HYPERV), Pending::Nothing),
            }
        };
        self.pending = pending;
        exit
    }

    #[cold]
    fn decode_rare(&mut self, reason: u32) -> Exit {
        // SAFETY: in each arm, the exit reason says which member of the union holds.
        let (exit, pending) = unsafe {
            let u = &*self.data_of_exit();
            match reason {
                KVM_EXIT_HLT => (Exit::Hlt, Pending::Nothing),
                KVM_EXIT_SHUTDOWN => (Exit::Shutdown, Pending::Nothing),
                KVM_EXIT_SYSTEM_EVENT => {
                    let event = match u.system_event.type_ {
                        KVM_SYSTEM_EVENT_SHUTDOWN => SystemEvent::Shutdown,
                        KVM_SYSTEM_EVENT_RESET => SystemEvent::Reset,
                        KVM_SYSTEM_EVENT_CRASH => SystemEvent::Crash,
                        other => SystemEvent::Other(other),
                    };
                    (Exit::SystemEvent(event), Pending::Nothing)
                }
                KVM_EXIT_INTERNAL_ERROR => {
                    (Exit::InternalError { suberror: u.internal.suberror }, Pending::Nothing)
                }
                KVM_EXIT_FAIL_ENTRY => {
                    let f = u.fail_entry;
                    let reason = f.hardware_entry_failure_reason;
                    (Exit::FailEntry { reason, cpu: f.cpu }, Pending::Nothing)
                }
                // The hardware's own number for an exit that KVM did not expect.
                KVM_EXIT_UNKNOWN => {
                    let reason = u.hw.hardware_exit_reason;
                    (Exit::FailEntry { reason, cpu: Exit::NO_CPU }, Pending::Nothing)
                }
                KVM_EXIT_DEBUG => {
                    let d = u.debug.arch;
                    let exit = Exit::Debug { vector: d.exception, pc: d.pc, dr6: d.dr6 };
                    (exit, Pending::Nothing)
                }
                KVM_EXIT_HYPERCALL => {
                    let h = &u.hypercall;
                    let args = [h.args[0], h.args[1], h.args[2]];
                    (Exit::Hypercall { nr: h.nr, args }, Pending::Hypercall)
                }
                KVM_EXIT_X86_RDMSR => (Exit::Rdmsr { index: u.msr.index }, Pending::Msr),
                KVM_EXIT_X86_WRMSR => {
                    (Exit::Wrmsr { index: u.msr.index, value: u.msr.data }, Pending::Msr)
                }
                KVM_EXIT_IOAPIC_EOI => (Exit::IoapicEoi(u.eoi.vector), Pending::Nothing),
                KVM_EXIT_SET_TPR => (Exit::SetTpr, Pending::Nothing),
                KVM_EXIT_IRQ_WINDOW_OPEN => (Exit::IrqWindow, Pending::Nothing),
                KVM_EXIT_MEMORY_FAULT => {
                    let m = u.memory_fault;
                    (
                        Exit::MemoryFault { flags: m.flags, gpa: m.gpa, size: m.size },
                        Pending::Nothing,
                    )
                }
                KVM_EXIT_DIRTY_RING_FULL => (Exit::DirtyRingFull, Pending::Nothing),
                KVM_EXIT_X86_BUS_LOCK => (Exit::BusLock, Pending::Nothing),
                KVM_EXIT_NOTIFY => (Exit::Notify, Pending::Nothing),
                KVM_EXIT_INTR => (Exit::Interrupted, Pending::Nothing),
                other => (Exit::Unknown(other), Pending::Nothing),
            }
        };
        self.pending = pending;
        exit
    }

    /// Whether the exit is the guest's word that it crashed.
    pub(super) fn is_crash(&self) -> bool {
        self.exit_reason() == KVM_EXIT_SYSTEM_EVENT
            // SAFETY: the exit reason says which member of the union holds.
            && unsafe { (*self.data_of_exit()).system_event.type_ } == KVM_SYSTEM_EVENT_CRASH
    }

    /// Whether the exit reason that KVM left is a memory fault: KVM_RUN fails with EFAULT then.
    pub(super) fn is_memory_fault(&self) -> bool {
        self.exit_reason() == KVM_EXIT_MEMORY_FAULT
    }

    /// Whether registers were asked for with each exit.
    pub(super) fn syncs(&self) -> bool {
        // SAFETY: plain numbers inside the page.
        unsafe { (*self.page).kvm_valid_regs != 0 }
    }

    /// Where the guest was at the last exit, if registers were asked for with each.
    #[inline]
    pub(super) fn synced_rip(&self) -> Option<u64> {
        // SAFETY: plain numbers inside the page; KVM fills the registers when their bit is set.
        let (valid, rip) = unsafe { ((*self.page).kvm_valid_regs, (*self.page).s.regs.regs.rip) };
        (valid & u64::from(KVM_SYNC_X86_REGS) != 0).then_some(rip)
    }

    /// No access is under way: after KVM_RUN failed.
    pub(super) fn forget(&mut self) {
        self.pending = Pending::Nothing;
    }

    /// A debug exit's DR7; an internal error's data, and the bytes of the instruction that was not emulated.
    pub(super) fn detail(&self) -> Detail {
        match self.exit_reason() {
            KVM_EXIT_DEBUG => {
                // SAFETY: the exit reason says which member of the union holds.
                let dr7 = unsafe { (*self.data_of_exit()).debug.arch.dr7 };
                return Detail { data: vec![dr7], instruction: None };
            }
            KVM_EXIT_INTERNAL_ERROR => {}
            _ => return Detail::default(),
        }
        // SAFETY: the exit reason says which members of the union hold; all are plain numbers.
        unsafe {
            let u = &*self.data_of_exit();
            let n = (u.internal.ndata as usize).min(u.internal.data.len());
            let data = u.internal.data[..n].to_vec();
            let failure = &u.emulation_failure;
            let known =
                failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
            let instruction = (failure.suberror == KVM_INTERNAL_ERROR_EMULATION
                && failure.ndata >= 1
                && known != 0)
                .then(|| {
                    let insn = &failure.__bindgen_anon_1.__bindgen_anon_1;
                    let len = usize::from(insn.insn_size).min(insn.insn_bytes.len());
                    insn.insn_bytes[..len].to_vec()
                });
            Detail { data, instruction }
        }
    }
}

/// One way of [`RunPage::answer`].
///
/// # Safety
/// At `data` are eight bytes that are nobody else's.
#[inline(always)]
unsafe fn answer(
    board: &mut impl Answers,
    space: Space,
    addr: u64,
    size: Size,
    data: *mut u64,
    write: bool,
) {
    if write {
        // SAFETY: the caller's promise.
        let value = unsafe { data.read_unaligned() };
        board.access(Access::write(space, addr, size, value));
    } else {
        let value = board.access(Access::read(space, addr, size));
        // SAFETY: the caller's promise.
        unsafe { data.write_unaligned(value) };
    }
}

/// Offset in the page of byte `done` of an MMIO access's data.
#[inline]
fn mmio_data(done: u8) -> usize {
    std::mem::offset_of!(kvm_run, __bindgen_anon_1)
        + std::mem::offset_of!(kvm_run__bindgen_ty_1__bindgen_ty_6, data)
        + usize::from(done)
}

#[cfg(test)]
mod tests;
