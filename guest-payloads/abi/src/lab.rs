//! The lab: how a payload asks its VMM for calls about itself (`vmm run --lab`).
//!
//! The guest fills a [`Request`] in its RAM, below 4 GiB, and writes the physical address to
//! [`PORT`] with one 4-byte OUT. When the instruction is over, the request holds the result.
//! Reading 4 bytes of the port gives [`MAGIC`] where there is a lab, all-ones where there is none.
//!
//! Everything is little-endian. Addresses of buffers are guest-physical.

/// I/O port of the lab.
pub const PORT: u16 = 0x1ab0;

/// First word of a [`Request`], and what the port reads as; also the version of the layouts.
pub const MAGIC: u32 = 0x4c41_4201;

/// What [`Request::result`] holds before the VMM has answered; no error number.
pub const UNANSWERED: i64 = i64::MIN;

/// The most bytes that one buffer can have.
pub const MAX_BUFFER: u64 = 1 << 20;

/// The most requests in one chain.
pub const MAX_CHAIN: usize = 64;

/// The most [`Rule`]s of one vCPU.
pub const MAX_RULES: usize = 16;

/// The most ranges of an MSR filter (`KVM_MSR_FILTER_MAX_RANGES`).
pub const MAX_MSR_RANGES: usize = 16;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Request {
    /// [`MAGIC`].
    pub magic: u32,
    /// What is asked for: one of [`op`].
    pub op: u32,
    /// Physical address of the request that is carried out after this one, whatever came of it; 0
    /// for none.
    pub next: u32,
    /// 0.
    pub reserved: u32,
    /// 0 or more, or an error number of Linux, negated. [`UNANSWERED`] before.
    pub result: i64,
    /// A second result of some operations.
    pub value: u64,
    /// By operation; those that it does not use are 0.
    pub args: [u64; 8],
}

/// Bytes of a [`Request`].
pub const REQUEST_SIZE: usize = 96;
const _: () = assert!(size_of::<Request>() == REQUEST_SIZE);

/// Offset of [`Request::result`], in bytes; [`Request::value`] follows it.
pub const RESULT_AT: u64 = 16;

/// The operations: what [`Request::op`] says, with the arguments in their order. A buffer is two
/// arguments, address and length in bytes.
pub mod op {
    /// An ioctl: target ([`super::target`]), number, buffer, and the argument of one that takes a
    /// number instead of a buffer. The result is the ioctl's.
    pub const IOCTL: u32 = 1;
    /// `KVM_*_DEVICE_ATTR` with a 64-bit attribute: target, what (0 has, 1 get, 2 set), group,
    /// attribute, value. The value of a get is in [`super::Request::value`].
    pub const DEVICE_ATTR: u32 = 2;
    /// `KVM_X86_SET_MSR_FILTER`: flags, buffer of [`super::MsrRange`].
    pub const MSR_FILTER: u32 = 3;
    /// Makes lab memory: size in bytes, what backs it ([`super::backing`]). The result is its
    /// number.
    pub const MEMORY: u32 = 4;
    /// Makes, moves, changes or deletes a memslot over lab memory: slot, flags, guest-physical
    /// address, size (0 deletes), number of the lab memory, offset in it. Bits 31:16 of a slot are
    /// its address space: 0, or 1 for what a vCPU in system-management mode sees.
    pub const SLOT: u32 = 5;
    /// The board's slot of RAM that a guest-physical address lies in. The result is the slot, the
    /// value its first address. The same number in address space 1 is that of system-management
    /// mode, where the machine has such.
    pub const RAM_SLOT: u32 = 6;
    /// Changes the flags of one of the board's slots of RAM: slot, flags.
    pub const RAM_FLAGS: u32 = 7;
    /// The host reads lab memory: number, offset, buffer that it copies to.
    pub const READ: u32 = 8;
    /// The host writes lab memory: number, offset, buffer that it copies from.
    pub const WRITE: u32 = 9;
    /// The host fills lab memory with a 64-bit word: number, offset, length, word.
    pub const FILL: u32 = 10;
    /// The host sums up lab memory: number, offset, length. The value is [`super::hash`] of it.
    pub const HASH: u32 = 11;
    /// `madvise` of lab memory: number, offset, length, what ([`super::advice`]).
    pub const ADVISE: u32 = 12;
    /// `mprotect` of lab memory on the host: number, offset, length, 0 nothing, 1 reading, 3
    /// reading and writing.
    pub const PROTECT: u32 = 13;
    /// `KVM_GET_DIRTY_LOG`: slot, buffer.
    pub const DIRTY_LOG: u32 = 14;
    /// `KVM_CLEAR_DIRTY_LOG`: slot, first page, pages, buffer.
    pub const CLEAR_DIRTY_LOG: u32 = 15;
    /// Takes the dirty entries out of this vCPU's dirty ring: buffer of [`super::DirtyPage`]. The
    /// result is how many. They are free again after `KVM_RESET_DIRTY_RINGS`.
    pub const HARVEST: u32 = 16;
    /// Sets which exits of this vCPU are recorded: buffer of [`super::Rule`]; buffer of a
    /// [`super::LogHeader`] with [`super::LogEntry`]s behind it.
    pub const RECORD: u32 = 17;
    /// Goes on in a new VM. On an error the value is the step that failed ([`super::step`]).
    pub const TRANSPLANT: u32 = 18;
    /// Registers lab memory for page faults that a thread of the host resolves: number, offset,
    /// length, seed. Word n of the memory is then seed ^ (its offset in the memory).
    pub const USERFAULT: u32 = 19;
    /// How many faults that thread has resolved in the memory of this number: the value.
    pub const USERFAULT_COUNT: u32 = 20;
    /// Sets `request_interrupt_window` of the page that the vCPU shares with KVM: 0 or 1; 2 leaves it. The
    /// value is what KVM said there after the last `KVM_RUN`: bit 0 `ready_for_interrupt_injection`, bit
    /// 1 `if_flag`, bits 7:4 `cr8`, bits 31:16 `flags`. A transplant clears the request.
    pub const INTERRUPT_WINDOW: u32 = 21;
}

/// What an ioctl is made on.
pub mod target {
    /// `/dev/kvm`.
    pub const SYSTEM: u64 = 0;
    /// The VM.
    pub const VM: u64 = 1;
    /// The vCPU that asks.
    pub const VCPU: u64 = 2;
}

/// What backs lab memory.
pub mod backing {
    /// Pages of 4 KiB only.
    pub const SMALL: u64 = 0;
    /// Transparent huge pages are asked for.
    pub const TRANSPARENT: u64 = 1;
    /// hugetlbfs pages of 2 MiB.
    pub const HUGE_2M: u64 = 2;
    /// hugetlbfs pages of 1 GiB.
    pub const HUGE_1G: u64 = 3;
}

/// What the host is told of lab memory.
pub mod advice {
    /// The pages are dropped, and read as zero (`MADV_DONTNEED`).
    pub const DROP: u64 = 0;
    /// `MADV_HUGEPAGE`.
    pub const HUGE: u64 = 1;
    /// `MADV_NOHUGEPAGE`.
    pub const SMALL: u64 = 2;
    /// `MADV_COLLAPSE`.
    pub const COLLAPSE: u64 = 3;
}

/// Steps of a transplant, in their order.
pub mod step {
    /// The VM has more vCPUs than one, or something of it cannot be moved.
    pub const CHECK: u64 = 0;
    /// Saving the state of the vCPU and the VM.
    pub const SAVE: u64 = 1;
    /// Making the new VM and its memslots.
    pub const NEW_VM: u64 = 2;
    /// What was set up by ioctls of the lab: capabilities, routes, filters.
    pub const SETTINGS: u64 = 3;
    /// The state of the VM: interrupt controllers, PIT.
    pub const VM_STATE: u64 = 4;
    /// The state of the vCPU.
    pub const VCPU_STATE: u64 = 5;
    /// Its nested state.
    pub const NESTED: u64 = 6;
    /// Its MSRs.
    pub const MSRS: u64 = 7;
    /// The clock of the VM.
    pub const CLOCK: u64 = 8;
}

/// A range of an MSR filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MsrRange {
    /// `KVM_MSR_FILTER_READ` (1), `KVM_MSR_FILTER_WRITE` (2).
    pub flags: u32,
    /// MSRs that it is about, from 1.
    pub count: u32,
    /// The first.
    pub first: u32,
    /// Physical address of the bitmap: one bit an MSR, 1 lets the access through.
    pub bitmap: u32,
}

/// One entry of a dirty ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DirtyPage {
    /// Slot (low half) and address space (high half).
    pub slot: u32,
    /// 0.
    pub reserved: u32,
    /// Page in the slot.
    pub page: u64,
}

/// Kinds of exits: bits of [`Rule::kinds`], and [`LogEntry::kind`] with one bit set.
pub mod kind {
    /// Port I/O. Words: port, size in bytes, 1 for a write, value written.
    pub const PORT: u32 = 1 << 0;
    /// Memory-mapped I/O. Words: address, size in bytes, 1 for a write, value written.
    pub const MMIO: u32 = 1 << 1;
    /// `KVM_EXIT_DEBUG`. Words: pc, DR6, DR7, vector.
    pub const DEBUG: u32 = 1 << 2;
    /// `KVM_EXIT_X86_RDMSR`. Word: the MSR.
    pub const RDMSR: u32 = 1 << 3;
    /// `KVM_EXIT_X86_WRMSR`. Words: the MSR, the value.
    pub const WRMSR: u32 = 1 << 4;
    /// `KVM_EXIT_HYPERCALL`. Words: number, three arguments.
    pub const HYPERCALL: u32 = 1 << 5;
    /// `KVM_EXIT_DIRTY_RING_FULL`.
    pub const DIRTY_RING_FULL: u32 = 1 << 6;
    /// `KVM_EXIT_MEMORY_FAULT`. Words: flags, address, size.
    pub const MEMORY_FAULT: u32 = 1 << 7;
    /// `KVM_EXIT_IRQ_WINDOW_OPEN`.
    pub const IRQ_WINDOW: u32 = 1 << 8;
    /// `KVM_EXIT_SET_TPR`.
    pub const SET_TPR: u32 = 1 << 9;
    /// `KVM_EXIT_X86_BUS_LOCK`.
    pub const BUS_LOCK: u32 = 1 << 10;
    /// `KVM_EXIT_FAIL_ENTRY`, and exits unknown to KVM. Words: reason, processor.
    pub const FAIL_ENTRY: u32 = 1 << 11;
    /// `KVM_EXIT_INTERNAL_ERROR`. Words: suberror, the first data words.
    pub const INTERNAL_ERROR: u32 = 1 << 12;
    /// `KVM_EXIT_SHUTDOWN`: a triple fault.
    pub const SHUTDOWN: u32 = 1 << 13;
    /// `KVM_EXIT_HLT`.
    pub const HLT: u32 = 1 << 14;
    /// `KVM_EXIT_IOAPIC_EOI`. Word: the vector.
    pub const IOAPIC_EOI: u32 = 1 << 15;
    /// `KVM_EXIT_NOTIFY`.
    pub const NOTIFY: u32 = 1 << 16;
    /// KVM_RUN failed. Word: the error number.
    pub const RUN_ERROR: u32 = 1 << 17;
    /// An exit reason that the VMM does not know. Word: its number.
    pub const UNKNOWN: u32 = 1 << 18;
    /// `KVM_EXIT_SYSTEM_EVENT`. Word: its type.
    pub const SYSTEM_EVENT: u32 = 1 << 19;
    /// `KVM_EXIT_HYPERV`. Words: its type; then of [`HYPERV_SYNIC`] the MSR, SCONTROL, SIEFP and SIMP,
    /// of [`HYPERV_CALL`] the input and two parameters, of [`HYPERV_DEBUG`] the MSR. The number that
    /// ranges are about is the MSR or the call code.
    pub const HYPERV: u32 = 1 << 20;
    /// All of them.
    pub const ALL: u32 = (1 << 21) - 1;

    /// `KVM_EXIT_HYPERV_SYNIC`.
    pub const HYPERV_SYNIC: u64 = 1;
    /// `KVM_EXIT_HYPERV_HCALL`.
    pub const HYPERV_CALL: u64 = 2;
    /// `KVM_EXIT_HYPERV_SYNDBG`.
    pub const HYPERV_DEBUG: u64 = 3;
}

/// Which exits are recorded, and how each is answered. The first rule that fits counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rule {
    /// Bits of [`kind`].
    pub kinds: u32,
    /// 0, or 1: an MSR access raises #GP.
    pub fault: u32,
    /// The least port, address or MSR that it is about.
    pub first: u64,
    /// The last one. Kinds without a number have 0.
    pub last: u64,
    /// What a read, RDMSR or hypercall gives.
    pub value: u64,
    /// What is added to RIP afterwards.
    pub rip_add: u64,
    /// What is set in RFLAGS afterwards: RF goes past an instruction breakpoint once.
    pub rflags_or: u64,
    /// Physical address of the first of a chain of requests that is carried out at the exit, with
    /// the access behind it; 0 for none. What RIP and RFLAGS become is settled after it.
    pub requests: u32,
    /// It is about so many exits; 0 for any number.
    pub limit: u32,
    /// 0.
    pub reserved: u64,
}

/// Bytes of a [`Rule`].
pub const RULE_SIZE: usize = 64;
const _: () = assert!(size_of::<Rule>() == RULE_SIZE);

/// What the log of recorded exits begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LogHeader {
    /// Exits recorded so far, also those for which there was no room.
    pub count: u64,
    /// 0.
    pub reserved: u64,
}

/// Bytes of a [`LogHeader`].
pub const LOG_HEADER_SIZE: u64 = 16;

/// One recorded exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LogEntry {
    /// One bit of [`kind`].
    pub kind: u32,
    /// Index of the vCPU.
    pub cpu: u32,
    /// RIP at the exit: as KVM has it before the access is completed.
    pub rip: u64,
    /// RFLAGS at the exit.
    pub rflags: u64,
    /// By kind.
    pub words: [u64; 5],
}

/// Bytes of a [`LogEntry`].
pub const LOG_ENTRY_SIZE: u64 = 64;
const _: () = assert!(size_of::<LogEntry>() as u64 == LOG_ENTRY_SIZE);

/// FNV-1a of 64 bits over bytes: what [`op::HASH`] gives.
pub fn hash(bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &b| (sum ^ u64::from(b)).wrapping_mul(PRIME))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

impl Request {
    /// The request that these bytes hold.
    pub fn from_bytes(b: &[u8; REQUEST_SIZE]) -> Request {
        Request {
            magic: word(b, 0),
            op: word(b, 4),
            next: word(b, 8),
            reserved: word(b, 12),
            result: long(b, 16) as i64,
            value: long(b, 24),
            args: core::array::from_fn(|i| long(b, 32 + 8 * i)),
        }
    }
}

impl Rule {
    /// The rule that these bytes hold.
    pub fn from_bytes(b: &[u8; RULE_SIZE]) -> Rule {
        Rule {
            kinds: word(b, 0),
            fault: word(b, 4),
            first: long(b, 8),
            last: long(b, 16),
            value: long(b, 24),
            rip_add: long(b, 32),
            rflags_or: long(b, 40),
            requests: word(b, 48),
            limit: word(b, 52),
            reserved: long(b, 56),
        }
    }
}

impl LogEntry {
    /// Its bytes.
    pub fn to_bytes(&self) -> [u8; LOG_ENTRY_SIZE as usize] {
        let mut bytes = [0; LOG_ENTRY_SIZE as usize];
        bytes[..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.cpu.to_le_bytes());
        let longs = [self.rip, self.rflags].into_iter().chain(self.words);
        for (to, long) in bytes[8..].chunks_exact_mut(8).zip(longs) {
            to.copy_from_slice(&long.to_le_bytes());
        }
        bytes
    }
}

impl MsrRange {
    /// The range that these bytes hold.
    pub fn from_bytes(b: &[u8; 16]) -> MsrRange {
        MsrRange { flags: word(b, 0), count: word(b, 4), first: word(b, 8), bitmap: word(b, 12) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_the_types() {
        let mut bytes = [0; REQUEST_SIZE];
        for (i, b) in bytes.iter_mut().enumerate() {
            *b = i as u8;
        }
        let request = Request::from_bytes(&bytes);
        assert_eq!(request.op, 0x0706_0504);
        assert_eq!(core::mem::offset_of!(Request, result) as u64, RESULT_AT);
        assert_eq!(request.result, 0x1716_1514_1312_1110);
        assert_eq!(core::mem::offset_of!(Request, args), 32);
        assert_eq!(request.args[7], 0x5f5e_5d5c_5b5a_5958);
        let rule = Rule::from_bytes(bytes.first_chunk().expect("long enough"));
        assert_eq!(core::mem::offset_of!(Rule, requests), 48);
        assert_eq!((rule.requests, rule.limit), (0x3332_3130, 0x3736_3534));
        let entry = LogEntry { kind: 1, cpu: 2, rip: 3, rflags: 4, words: [5, 6, 7, 8, 9] };
        let bytes = entry.to_bytes();
        assert_eq!((long(&bytes, 0), long(&bytes, 8)), (1 | 2 << 32, 3));
        assert_eq!((long(&bytes, 24), long(&bytes, 56)), (5, 9));
    }

    #[test]
    fn a_hash_is_fnv_1a() {
        assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
