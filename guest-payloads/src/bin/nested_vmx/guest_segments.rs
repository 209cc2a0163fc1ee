//! VM-entry checks on the guest's segments (SDM volume 3, "Checks on Guest Segment Registers" and "Checks
//! on Guest Descriptor-Table Registers").

use super::checks::{each_invalid, enters_with, invalid_with};
use super::vm;
use payload_rt::test;
use payload_rt::vmx::{Field, set};

const NOT_CANONICAL: u64 = 0x4000_0000_0000_0000;
const UNUSABLE: u64 = 1 << 16;

test!(
    guest_selectors,
    "TR and a usable LDTR with TI, and SS with another RPL than CS, fail the entry.",
    || {
        let mut vm = vm();
        each_invalid(
            &mut vm,
            0,
            &[
                (Field::GUEST_TR, 0x3c, "TI in TR"),
                (Field::GUEST_SS, 0x11, "RPL of SS"),
                (Field::GUEST_SS, 0x13, "RPL of SS"),
            ],
        );
        let ldtr = [(Field::LDTR_RIGHTS, 0x82), (Field::GUEST_LDTR, 0x4c)];
        invalid_with(&mut vm, 0, &ldtr, "TI in LDTR");
        enters_with(&mut vm, &[(Field::GUEST_LDTR, 4)], "TI in an unusable LDTR");
    }
);

test!(
    guest_bases,
    "Segment bases that are not canonical, or wide where they may not be, fail the entry.",
    || {
        let mut vm = vm();
        each_invalid(
            &mut vm,
            0,
            &[
                (Field::TR_BASE, NOT_CANONICAL, "TR, not canonical"),
                (Field::FS_BASE, NOT_CANONICAL, "FS, not canonical"),
                (Field::GS_BASE, NOT_CANONICAL, "GS, not canonical"),
                (Field::CS_BASE, 1 << 32, "CS, bit 32"),
                (Field::CS_BASE, 0xffff_8000_0000_0000, "CS, upper half"),
                (Field::SS_BASE, 1 << 32, "SS, bit 32"),
                (Field::DS_BASE, 1 << 40, "DS, bit 40"),
                (Field::ES_BASE, 1 << 63, "ES, bit 63"),
            ],
        );
        let ldtr = [(Field::LDTR_RIGHTS, 0x82), (Field::LDTR_BASE, NOT_CANONICAL)];
        invalid_with(&mut vm, 0, &ldtr, "LDTR, not canonical");
        let unusable = [(Field::DS_RIGHTS, UNUSABLE), (Field::DS_BASE, 1 << 40)];
        enters_with(&mut vm, &unusable, "DS, unusable");
    }
);

test!(
    guest_cs_rights,
    "Access rights of CS that no code segment in 64-bit mode has fail the entry.",
    || {
        each_invalid(
            &mut vm(),
            0,
            &[
                (Field::CS_RIGHTS, 0xa093, "a data segment"),
                (Field::CS_RIGHTS, 0xa09a, "not accessed"),
                (Field::CS_RIGHTS, 0xa08b, "a system segment"),
                (Field::CS_RIGHTS, 0xa01b, "not present"),
                (Field::CS_RIGHTS, 0xe09b, "L and D"),
                (Field::CS_RIGHTS, 0xa0bb, "DPL 1 with SS at 0"),
                (Field::CS_RIGHTS, 0xa0fb, "DPL 3 with SS at 0"),
                (Field::CS_RIGHTS, 0xa0bf, "conforming, with a DPL above that of SS"),
                (Field::CS_RIGHTS, 0x1_a09b, "unusable"),
                (Field::CS_RIGHTS, 0x209b, "bytes, with a limit of 4 GiB"),
            ],
        );
    }
);

test!(guest_ss_rights, "Access rights of SS that no stack segment has fail the entry.", || {
    let mut vm = vm();
    each_invalid(
        &mut vm,
        0,
        &[
            (Field::SS_RIGHTS, 0xc091, "read-only"),
            (Field::SS_RIGHTS, 0xc09b, "code"),
            (Field::SS_RIGHTS, 0xc092, "not accessed"),
            (Field::SS_RIGHTS, 0xc083, "a system segment"),
            (Field::SS_RIGHTS, 0xc013, "not present"),
            (Field::SS_RIGHTS, 0xc0b3, "DPL 1 with RPL 0"),
            (Field::SS_RIGHTS, 0xc0f3, "DPL 3 with RPL 0"),
            (Field::SS_RIGHTS, 0x4093, "bytes, with a limit of 4 GiB"),
        ],
    );
    enters_with(&mut vm, &[(Field::SS_RIGHTS, UNUSABLE)], "unusable");
    let expand = [(Field::SS_RIGHTS, 0xc097), (Field::SS_LIMIT, 0xfff)];
    enters_with(&mut vm, &expand, "expand-down");
});

test!(
    guest_data_rights,
    "Access rights of DS, ES, FS and GS that no data segment has fail the entry.",
    || {
        let mut vm = vm();
        for field in [Field::ES_RIGHTS, Field::DS_RIGHTS, Field::FS_RIGHTS, Field::GS_RIGHTS] {
            // Their limits, as the granularity wants them.
            set(Field(field.0 - (Field::ES_RIGHTS.0 - Field::ES_LIMIT.0)), 0xffff_ffff);
            each_invalid(
                &mut vm,
                0,
                &[
                    (field, 0xc092, "not accessed"),
                    (field, 0xc099, "code that cannot be read"),
                    (field, 0xc083, "a system segment"),
                    (field, 0xc013, "not present"),
                    (field, 0x4093, "bytes, with a limit of 4 GiB"),
                ],
            );
            enters_with(&mut vm, &[(field, 0xc091)], "read-only");
            enters_with(&mut vm, &[(field, 0xc09b)], "readable code");
            enters_with(&mut vm, &[(field, UNUSABLE)], "unusable");
        }
    }
);

test!(guest_data_dpl, "A data segment's DPL must not be below its selector's RPL.", || {
    let mut vm = vm();
    for (selector, rights, what) in
        [(Field::GUEST_DS, Field::DS_RIGHTS, "DS"), (Field::GUEST_ES, Field::ES_RIGHTS, "ES")]
    {
        invalid_with(&mut vm, 0, &[(selector, 0x13)], what);
        enters_with(&mut vm, &[(selector, 0x13), (rights, 0xc0f3)], what);
        // Conforming code has no such rule.
        enters_with(&mut vm, &[(selector, 0x13), (rights, 0xc09f)], what);
    }
});

test!(guest_tr_rights, "Access rights of TR other than a busy TSS's fail the entry.", || {
    let mut vm = vm();
    each_invalid(
        &mut vm,
        0,
        &[
            (Field::TR_RIGHTS, 0x89, "available"),
            (Field::TR_RIGHTS, 0x83, "16 bits, in IA-32e mode"),
            (Field::TR_RIGHTS, 0x9b, "a code segment"),
            (Field::TR_RIGHTS, 0x0b, "not present"),
            (Field::TR_RIGHTS, 0x808b, "pages, with a limit below one"),
            (Field::TR_RIGHTS, 0x1_008b, "unusable"),
        ],
    );
    enters_with(&mut vm, &[(Field::TR_RIGHTS, 0x808b), (Field::TR_LIMIT, 0xfff)], "one page");
    let bytes = [(Field::TR_LIMIT, 0x10_0000)];
    invalid_with(&mut vm, 0, &bytes, "bytes, with a limit above 1 MiB");
});

test!(
    guest_ldtr_rights,
    "Access rights of a usable LDTR other than an LDT's fail the entry.",
    || {
        let mut vm = vm();
        set(Field::LDTR_LIMIT, 0xfff);
        set(Field::LDTR_RIGHTS, 0x82);
        each_invalid(
            &mut vm,
            0,
            &[
                (Field::LDTR_RIGHTS, 0x8b, "a TSS"),
                (Field::LDTR_RIGHTS, 0x92, "a data segment"),
                (Field::LDTR_RIGHTS, 0x02, "not present"),
                (Field::LDTR_LIMIT, 0x10_0000, "bytes, with a limit above 1 MiB"),
            ],
        );
    }
);

test!(
    guest_tables,
    "GDTR and IDTR bases that are not canonical and limits above 16 bits fail the entry.",
    || {
        each_invalid(
            &mut vm(),
            0,
            &[
                (Field::GDTR_BASE, NOT_CANONICAL, "GDTR base"),
                (Field::IDTR_BASE, NOT_CANONICAL, "IDTR base"),
                (Field::GDTR_LIMIT, 0x1_0000, "GDTR limit"),
                (Field::IDTR_LIMIT, 0x8000_0000, "IDTR limit"),
            ],
        );
    }
);
