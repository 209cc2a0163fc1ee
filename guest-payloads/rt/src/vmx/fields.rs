//! The fields of a VMCS, by their encodings (Intel SDM volume 3, appendix "Field Encoding in VMCS").

use core::fmt;

/// A field of a VMCS, as VMREAD and VMWRITE name it. Any encoding may be tried.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Field(pub u64);

macro_rules! fields {
    ($($name:ident = $encoding:literal;)*) => {
        #[allow(missing_docs)] // The manual's names, without the area's where they are unique.
        impl Field {
            $(pub const $name: Field = Field($encoding);)*
        }

        /// All fields named here, in the order of their encodings.
        pub const ALL: &[(Field, &str)] = &[$((Field($encoding), stringify!($name))),*];
    };
}
fields! {
    VPID = 0x0000;
    POSTED_VECTOR = 0x0002;
    GUEST_ES = 0x0800;
    GUEST_CS = 0x0802;
    GUEST_SS = 0x0804;
    GUEST_DS = 0x0806;
    GUEST_FS = 0x0808;
    GUEST_GS = 0x080a;
    GUEST_LDTR = 0x080c;
    GUEST_TR = 0x080e;
    PML_INDEX = 0x0812;
    HOST_ES = 0x0c00;
    HOST_CS = 0x0c02;
    HOST_SS = 0x0c04;
    HOST_DS = 0x0c06;
    HOST_FS = 0x0c08;
    HOST_GS = 0x0c0a;
    HOST_TR = 0x0c0c;
    IO_BITMAP_A = 0x2000;
    IO_BITMAP_B = 0x2002;
    MSR_BITMAP = 0x2004;
    EXIT_MSR_STORE = 0x2006;
    EXIT_MSR_LOAD = 0x2008;
    ENTRY_MSR_LOAD = 0x200a;
    PML_ADDRESS = 0x200e;
    TSC_OFFSET = 0x2010;
    VIRTUAL_APIC = 0x2012;
    APIC_ACCESS = 0x2014;
    POSTED_DESCRIPTOR = 0x2016;
    VMFUNC_CONTROLS = 0x2018;
    EPTP = 0x201a;
    EPTP_LIST = 0x2024;
    VMREAD_BITMAP = 0x2026;
    VMWRITE_BITMAP = 0x2028;
    ENCLS_BITMAP = 0x202e;
    TSC_MULTIPLIER = 0x2032;
    GUEST_PHYSICAL = 0x2400;
    LINK = 0x2800;
    GUEST_DEBUGCTL = 0x2802;
    GUEST_PAT = 0x2804;
    GUEST_EFER = 0x2806;
    GUEST_PDPTE0 = 0x280a;
    GUEST_PDPTE1 = 0x280c;
    GUEST_PDPTE2 = 0x280e;
    GUEST_PDPTE3 = 0x2810;
    HOST_PAT = 0x2c00;
    HOST_EFER = 0x2c02;
    PIN_CONTROLS = 0x4000;
    CPU_CONTROLS = 0x4002;
    EXCEPTION_BITMAP = 0x4004;
    PF_MASK = 0x4006;
    PF_MATCH = 0x4008;
    CR3_TARGET_COUNT = 0x400a;
    EXIT_CONTROLS = 0x400c;
    EXIT_MSR_STORE_COUNT = 0x400e;
    EXIT_MSR_LOAD_COUNT = 0x4010;
    ENTRY_CONTROLS = 0x4012;
    ENTRY_MSR_LOAD_COUNT = 0x4014;
    ENTRY_EVENT = 0x4016;
    ENTRY_EVENT_ERROR = 0x4018;
    ENTRY_EVENT_LENGTH = 0x401a;
    TPR_THRESHOLD = 0x401c;
    CPU_CONTROLS2 = 0x401e;
    INSTRUCTION_ERROR = 0x4400;
    EXIT_REASON = 0x4402;
    EXIT_EVENT = 0x4404;
    EXIT_EVENT_ERROR = 0x4406;
    VECTORING_EVENT = 0x4408;
    VECTORING_EVENT_ERROR = 0x440a;
    EXIT_LENGTH = 0x440c;
    INSTRUCTION_INFO = 0x440e;
    ES_LIMIT = 0x4800;
    CS_LIMIT = 0x4802;
    SS_LIMIT = 0x4804;
    DS_LIMIT = 0x4806;
    FS_LIMIT = 0x4808;
    GS_LIMIT = 0x480a;
    LDTR_LIMIT = 0x480c;
    TR_LIMIT = 0x480e;
    GDTR_LIMIT = 0x4810;
    IDTR_LIMIT = 0x4812;
    ES_RIGHTS = 0x4814;
    CS_RIGHTS = 0x4816;
    SS_RIGHTS = 0x4818;
    DS_RIGHTS = 0x481a;
    FS_RIGHTS = 0x481c;
    GS_RIGHTS = 0x481e;
    LDTR_RIGHTS = 0x4820;
    TR_RIGHTS = 0x4822;
    INTERRUPTIBILITY = 0x4824;
    ACTIVITY = 0x4826;
    GUEST_SYSENTER_CS = 0x482a;
    PREEMPTION_TIMER = 0x482e;
    HOST_SYSENTER_CS = 0x4c00;
    CR0_MASK = 0x6000;
    CR4_MASK = 0x6002;
    CR0_SHADOW = 0x6004;
    CR4_SHADOW = 0x6006;
    CR3_TARGET0 = 0x6008;
    CR3_TARGET1 = 0x600a;
    CR3_TARGET2 = 0x600c;
    CR3_TARGET3 = 0x600e;
    QUALIFICATION = 0x6400;
    LINEAR = 0x640a;
    GUEST_CR0 = 0x6800;
    GUEST_CR3 = 0x6802;
    GUEST_CR4 = 0x6804;
    ES_BASE = 0x6806;
    CS_BASE = 0x6808;
    SS_BASE = 0x680a;
    DS_BASE = 0x680c;
    FS_BASE = 0x680e;
    GS_BASE = 0x6810;
    LDTR_BASE = 0x6812;
    TR_BASE = 0x6814;
    GDTR_BASE = 0x6816;
    IDTR_BASE = 0x6818;
    GUEST_DR7 = 0x681a;
    GUEST_RSP = 0x681c;
    GUEST_RIP = 0x681e;
    GUEST_RFLAGS = 0x6820;
    PENDING_DEBUG = 0x6822;
    GUEST_SYSENTER_ESP = 0x6824;
    GUEST_SYSENTER_EIP = 0x6826;
    HOST_CR0 = 0x6c00;
    HOST_CR3 = 0x6c02;
    HOST_CR4 = 0x6c04;
    HOST_FS_BASE = 0x6c06;
    HOST_GS_BASE = 0x6c08;
    HOST_TR_BASE = 0x6c0a;
    HOST_GDTR_BASE = 0x6c0c;
    HOST_IDTR_BASE = 0x6c0e;
    HOST_SYSENTER_ESP = 0x6c10;
    HOST_SYSENTER_EIP = 0x6c12;
    HOST_RSP = 0x6c14;
    HOST_RIP = 0x6c16;
}

/// What an area of the VMCS is for: bits 11:10 of an encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// Controls.
    Control,
    /// What a VM exit says; read-only on most processors.
    ExitInfo,
    /// State of the guest.
    Guest,
    /// State that a VM exit loads.
    Host,
}

impl Field {
    /// Which area it is in.
    pub const fn area(self) -> Area {
        match self.0 >> 10 & 3 {
            0 => Area::Control,
            1 => Area::ExitInfo,
            2 => Area::Guest,
            _ => Area::Host,
        }
    }

    /// How many bits it has: bits 14:13 of the encoding. Natural width is 64.
    pub const fn bits(self) -> u32 {
        match self.0 >> 13 & 3 {
            0 => 16,
            2 => 32,
            _ => 64,
        }
    }

    /// Its index among those of its width and area: bits 9:1.
    pub const fn index(self) -> u64 {
        self.0 >> 1 & 0x1ff
    }

    /// The upper half of a 64-bit field (not of one of natural width).
    pub const fn high(self) -> Field {
        Field(self.0 | 1)
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match ALL.iter().find(|(field, _)| field == self) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "field {:#x}", self.0),
        }
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::format;

    #[test]
    fn an_encoding_says_area_and_width() {
        assert_eq!((Field::HOST_TR.area(), Field::HOST_TR.bits()), (Area::Host, 16));
        assert_eq!((Field::EPTP.area(), Field::EPTP.bits()), (Area::Control, 64));
        assert_eq!((Field::LINEAR.area(), Field::LINEAR.bits()), (Area::ExitInfo, 64));
        assert_eq!((Field::TR_RIGHTS.area(), Field::TR_RIGHTS.bits()), (Area::Guest, 32));
        assert_eq!(Field::PREEMPTION_TIMER.index(), 0x17);
        assert_eq!(format!("{} {}", Field::LINK, Field::LINK.high()), "LINK field 0x2801");
    }

    #[test]
    fn the_table_is_in_order_and_has_no_field_twice() {
        assert!(ALL.windows(2).all(|pair| pair[0].0.0 < pair[1].0.0));
    }
}
