//! Registers to and from KVM's form.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use crate::cpu::{CpuState, Segment, Table};

fn segment(s: &kvm_segment) -> Segment {
    Segment {
        selector: s.selector,
        base: s.base,
        limit: s.limit,
        kind: s.type_,
        code_or_data: s.s != 0,
        dpl: s.dpl,
        present: s.present != 0,
        avl: s.avl != 0,
        long: s.l != 0,
        default_32: s.db != 0,
        granular: s.g != 0,
        unusable: s.unusable != 0,
    }
}

fn to_segment(s: &Segment) -> kvm_segment {
    kvm_segment {
        selector: s.selector,
        base: s.base,
        limit: s.limit,
        type_: s.kind,
        s: s.code_or_data.into(),
        dpl: s.dpl,
        present: s.present.into(),
        avl: s.avl.into(),
        l: s.long.into(),
        db: s.default_32.into(),
        g: s.granular.into(),
        unusable: s.unusable.into(),
        padding: 0,
    }
}

fn to_table(t: Table) -> kvm_dtable {
    kvm_dtable { base: t.base, limit: t.limit, ..Default::default() }
}

pub(super) fn from_kvm(r: &kvm_regs, s: &kvm_sregs) -> CpuState {
    CpuState {
        gpr: [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ],
        rip: r.rip,
        rflags: r.rflags,
        segments: [&s.es, &s.cs, &s.ss, &s.ds, &s.fs, &s.gs].map(segment),
        tr: segment(&s.tr),
        ldt: segment(&s.ldt),
        gdt: Table { base: s.gdt.base, limit: s.gdt.limit },
        idt: Table { base: s.idt.base, limit: s.idt.limit },
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
    }
}

pub(super) fn to_regs(c: &CpuState) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = c.gpr;
    let CpuState { rip, rflags, .. } = *c;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    }
}

/// `old` keeps what [`CpuState`] does not hold: the pending interrupts.
pub(super) fn to_sregs(c: &CpuState, old: kvm_sregs) -> kvm_sregs {
    let [es, cs, ss, ds, fs, gs] = c.segments.map(|s| to_segment(&s));
    kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr: to_segment(&c.tr),
        ldt: to_segment(&c.ldt),
        gdt: to_table(c.gdt),
        idt: to_table(c.idt),
        cr0: c.cr0,
        cr2: c.cr2,
        cr3: c.cr3,
        cr4: c.cr4,
        cr8: c.cr8,
        efer: c.efer,
        apic_base: c.apic_base,
        interrupt_bitmap: old.interrupt_bitmap,
    }
}
