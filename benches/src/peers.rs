//! The least of guests, which any VMM can run: it writes a byte to the first serial port and, if it is to, makes
//! exits of one kind between two writes to port 0x80 (as the payload `exits` does). Then it waits for ever.
//!
//! Each is an ELF that is entered by PVH or multiboot, and a flat image for real mode, since kvmtool loads no ELF.

use payload_abi::exits::{BEGIN, COLD, END, FENCE, NUMBER};

/// What the guest writes: a byte that no banner has.
pub const MARK: u8 = 0xa7;
/// Where the flat image is loaded, which is entered at segment `FLAT >> 4`, offset 0.
pub const FLAT: u32 = 0x1_0000;
/// Where the ELF is loaded.
const HIGH: u32 = 0x10_0000;
/// The first serial port: its data, and its scratch register, which does nothing.
const SERIAL: u16 = 0x3f8;
const SCRATCH: u16 = SERIAL + 7;
/// A port and an address that are nobody's.
const NOBODY: u16 = 0xd00;
const NOWHERE: u32 = 0xfed8_0000;
/// The port by which a guest ends exitlab's VMM; others do not know it.
const EXIT: u16 = 0xf4;

/// What a guest does after its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Nothing.
    First,
    /// Reads of a register that is claimed.
    Claimed,
    /// Reads of a port that is nobody's.
    Unclaimed,
    /// Reads of an address that is nobody's.
    Mmio,
}

impl Guest {
    /// Those that make exits.
    pub const EXITS: [Guest; 3] = [Guest::Claimed, Guest::Unclaimed, Guest::Mmio];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Guest::First => "start",
            Guest::Claimed => "claimed",
            Guest::Unclaimed => "unclaimed",
            Guest::Mmio => "mmio",
        }
    }

    /// What it does: the same in 32-bit and 64-bit code, and of any place.
    fn body(self) -> Vec<u8> {
        // mov dx, imm16; mov al, imm8; out dx, al
        let out = |port: u16, value: u8| {
            let [low, high] = port.to_le_bytes();
            [0x66, 0xba, low, high, 0xb0, value, 0xee]
        };
        let mut code = out(SERIAL, MARK).to_vec();
        if self != Guest::First {
            code.extend(out(FENCE, BEGIN));
            let [low, high] = match self {
                Guest::Claimed => SCRATCH,
                _ => NOBODY,
            }
            .to_le_bytes();
            code.extend([0x66, 0xba, low, high]);
            // mov ebx, imm32; mov ecx, imm32
            code.push(0xbb);
            code.extend(NOWHERE.to_le_bytes());
            code.push(0xb9);
            code.extend(((COLD + NUMBER) as u32).to_le_bytes());
            // The exit: mov eax, [ebx] or in al, dx. Then dec ecx; jnz back.
            let exit: &[u8] = if self == Guest::Mmio { &[0x8b, 0x03] } else { &[0xec] };
            code.extend(exit);
            code.extend([0xff, 0xc9, 0x75, (-4 - exit.len() as i8).cast_unsigned()]);
            code.extend(out(FENCE, END));
            code.extend(out(EXIT, 0));
        }
        // cli; hlt; jmp to the hlt
        code.extend([0xfa, 0xf4, 0xeb, 0xfd]);
        code
    }

    /// The flat image: entered in real mode, it goes to flat 32-bit code.
    pub fn flat(self) -> Vec<u8> {
        const GDTR: u8 = 0x20;
        const GDT: u8 = 0x28;
        const BODY: u8 = 0x40;
        let [a, b, c, d] = (FLAT + u32::from(BODY)).to_le_bytes();
        let mut image = vec![
            0xfa, // cli
            0x2e, 0x66, 0x0f, 0x01, 0x16, GDTR, 0, // lgdt cs:[GDTR]
            0x0f, 0x20, 0xc0, // mov eax, cr0
            0x0c, 0x01, // or al, 1
            0x0f, 0x22, 0xc0, // mov cr0, eax
            0x66, 0xea, a, b, c, d, 8, 0, // jmp 8:BODY
        ];
        image.resize(GDTR.into(), 0);
        // 23 is the limit of three descriptors.
        image.extend(23u16.to_le_bytes());
        image.extend((FLAT + u32::from(GDT)).to_le_bytes());
        image.resize(GDT.into(), 0);
        // None; code and data of 4 GiB from 0 on (SDM volume 3, 3.4.5).
        for descriptor in [0u64, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff] {
            image.extend(descriptor.to_le_bytes());
        }
        image.resize(BODY.into(), 0);
        // mov ax, 16; mov ds, ax
        image.extend([0x66, 0xb8, 16, 0, 0x8e, 0xd8]);
        image.extend(self.body());
        image
    }

    /// The ELF: of 64 bits, with Xen's note of a 32-bit entry and a multiboot header that says the same.
    pub fn elf(self) -> Vec<u8> {
        const HEADERS: u32 = 0x40 + 2 * 0x38;
        const NOTE: u32 = HEADERS;
        const NOTE_LEN: u32 = 12 + 4 + 4;
        const MULTIBOOT: u32 = (NOTE + NOTE_LEN).next_multiple_of(4);
        const ENTRY: u32 = MULTIBOOT + 32;
        let code = self.body();
        let len = u64::from(ENTRY) + code.len() as u64;
        let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
        image.resize(16, 0);
        // ET_EXEC, EM_X86_64, EV_CURRENT.
        image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        image.extend(u64::from(HIGH + ENTRY).to_le_bytes());
        // e_phoff, e_shoff, e_flags.
        image.extend(0x40u64.to_le_bytes());
        image.extend([0; 12]);
        // e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx.
        image.extend([0x40u16, 0x38, 2, 0x40, 0, 0].iter().flat_map(|n| n.to_le_bytes()));
        // PT_LOAD of all, readable, writable, executable; PT_NOTE.
        for (kind, flags, at, len, align) in
            [(1u32, 7u32, 0u32, len, 0x1000u64), (4, 4, NOTE, NOTE_LEN.into(), 4)]
        {
            image.extend([kind, flags].iter().flat_map(|n| n.to_le_bytes()));
            let place = u64::from(HIGH + at);
            let words = [at.into(), place, place, len, len, align];
            image.extend(words.iter().flat_map(|n| n.to_le_bytes()));
        }
        // n_namesz, n_descsz, XEN_ELFNOTE_PHYS32_ENTRY; the name; the entry.
        image.extend([4u32, 4, 18].iter().flat_map(|n| n.to_le_bytes()));
        image.extend(*b"Xen\0");
        image.extend((HIGH + ENTRY).to_le_bytes());
        image.resize(MULTIBOOT as usize, 0);
        // Multiboot 0.6.96, 3.1: magic, flags (bit 16: addresses follow), checksum; header, load address, its end,
        // no BSS, the entry.
        let (magic, flags) = (0x1bad_b002u32, 1u32 << 16);
        let sum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
        let words = [magic, flags, sum, HIGH + MULTIBOOT, HIGH, 0, 0, HIGH + ENTRY];
        image.extend(words.iter().flat_map(|n| n.to_le_bytes()));
        image.extend(code);
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaders_take_the_elf_by_either_protocol() {
        use vmm::boot::{self, Protocol};
        use vmm::ram::{Backing, GuestRam};
        for guest in [&[Guest::First][..], &Guest::EXITS].concat() {
            let image = guest.elf();
            for protocol in [Protocol::Auto, Protocol::Pvh, Protocol::Multiboot, Protocol::Elf] {
                let ram = GuestRam::new(16 << 20, Backing::Small).expect("memory");
                let request =
                    boot::Request { protocol, ..boot::Request::new(&image, guest.name(), &ram) };
                let loaded = boot::load(&request).unwrap_or_else(|e| panic!("{protocol:?}: {e}"));
                let mut code = vec![0; guest.body().len()];
                ram.read(loaded.start.rip, &mut code).expect("RAM");
                assert_eq!(code, guest.body(), "{protocol:?} of {}", guest.name());
            }
        }
    }

    #[test]
    fn the_loop_goes_back_to_the_exit() {
        for guest in Guest::EXITS {
            let body = guest.body();
            let jump =
                body.windows(3).position(|w| w[..] == [0xff, 0xc9, 0x75]).expect("it is there");
            let back = body[jump + 3].cast_signed();
            let target = (jump + 4).checked_add_signed(back.into()).expect("inside");
            let exit: &[u8] = if guest == Guest::Mmio { &[0x8b, 0x03] } else { &[0xec] };
            assert_eq!(&body[target..jump], exit, "{}", guest.name());
        }
        assert_eq!(Guest::First.flat()[0x40..0x46], [0x66, 0xb8, 16, 0, 0x8e, 0xd8]);
    }
}
