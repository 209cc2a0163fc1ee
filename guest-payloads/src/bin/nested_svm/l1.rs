//! What a #VMEXIT must leave as it was: the state of the hypervisor.

use payload_rt::reg::{self, rdmsr};
use payload_rt::{check_eq, svm};

/// MSRs that VMRUN and #VMEXIT do not touch (AMD APM volume 2, 15.5.1 and 15.6), and EFER, which they
/// save and restore.
const MSRS: [(&str, u32); 14] = [
    ("EFER", reg::EFER),
    ("STAR", reg::STAR),
    ("LSTAR", reg::LSTAR),
    ("CSTAR", reg::CSTAR),
    ("SFMASK", reg::FMASK),
    ("FS base", reg::FS_BASE),
    ("GS base", reg::GS_BASE),
    ("KernelGSbase", reg::KERNEL_GS_BASE),
    ("SYSENTER_CS", 0x174),
    ("SYSENTER_ESP", 0x175),
    ("SYSENTER_EIP", 0x176),
    ("PAT", reg::PAT),
    ("APIC base", reg::APIC_BASE),
    ("VM_HSAVE_PA", svm::VM_HSAVE_PA),
];
const OTHERS: usize = 18;

/// The state of L1, word by word with its name.
pub struct L1([(&'static str, u64); MSRS.len() + OTHERS]);

impl L1 {
    /// As it is now.
    pub fn now() -> L1 {
        let gdt = reg::sgdt().unwrap_or_else(|trap| panic!("sgdt: {trap}"));
        let idt = reg::sidt().unwrap_or_else(|trap| panic!("sidt: {trap}"));
        let others: [(&str, u64); OTHERS] = [
            ("CR0", reg::cr0()),
            ("CR3", reg::cr3()),
            ("CR4", reg::cr4()),
            ("CR8", reg::cr8()),
            ("RFLAGS but for the status flags", reg::rflags() & !0x8d5),
            ("GDT base", gdt.base),
            ("GDT limit", gdt.limit.into()),
            ("IDT base", idt.base),
            ("IDT limit", idt.limit.into()),
            ("CS", reg::cs().into()),
            ("SS", reg::ss().into()),
            ("DS", reg::ds().into()),
            ("ES", reg::es().into()),
            ("FS", reg::fs().into()),
            ("GS", reg::gs().into()),
            ("TR", reg::str().unwrap_or_else(|trap| panic!("str: {trap}")).into()),
            ("DR0", reg::dr(0).unwrap_or_else(|trap| panic!("read DR0: {trap}"))),
            ("DR3", reg::dr(3).unwrap_or_else(|trap| panic!("read DR3: {trap}"))),
        ];
        let mut all = [("", 0); MSRS.len() + OTHERS];
        let msrs = MSRS.iter().map(|&(name, msr)| match rdmsr(msr) {
            Ok(value) => (name, value),
            Err(trap) => panic!("read {name}: {trap}"),
        });
        for (slot, word) in all.iter_mut().zip(others.into_iter().chain(msrs)) {
            *slot = word;
        }
        L1(all)
    }

    /// Ends the test with `fail` unless all of it is still as it was.
    pub fn check_intact(&self, what: &str) {
        for (then, now) in self.0.iter().zip(&L1::now().0) {
            check_eq!(now.1, then.1, "{what}: {} of the hypervisor", then.0);
        }
    }
}
