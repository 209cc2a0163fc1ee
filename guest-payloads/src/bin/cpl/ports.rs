//! Ports: IOPL and the TSS's I/O permission map (SDM volume 1, 19.5; AMD APM volume 2, 12.2.4).

use super::{check_done, check_end};
use payload_rt::trap::GP;
use payload_rt::user::User;
use payload_rt::{asm_code, cpu, test};

/// The POST port and its neighbours: bytes to and from there do nothing.
const PORT: u16 = 0x80;

/// Accesses of each width to and from the port in DX.
fn accesses() -> [(&'static str, u16, &'static [u8]); 8] {
    [
        ("in al, dx", 1, asm_code!("in al, dx", "ret")),
        ("out dx, al", 1, asm_code!("out dx, al", "ret")),
        ("in ax, dx", 2, asm_code!("in ax, dx", "ret")),
        ("out dx, ax", 2, asm_code!("out dx, ax", "ret")),
        ("in eax, dx", 4, asm_code!("in eax, dx", "ret")),
        ("out dx, eax", 4, asm_code!("out dx, eax", "ret")),
        ("insb", 1, asm_code!("insb", "ret")),
        ("outsb", 1, asm_code!("outsb", "ret")),
    ]
}

fn user(code: &[u8], port: u16, iopl: u64) -> User {
    let mut user = User::new(code);
    user.regs.rdx = port.into();
    user.regs.rflags |= iopl << 12;
    user.regs.rdi = user.regs.rsp - 64;
    user.regs.rsi = user.regs.rsp - 64;
    user
}

test!(port_iopl, "With IOPL 3 CPL 3 reaches every port; below, and without a map, none.", || {
    cpu::close_ports();
    for (what, _, code) in accesses() {
        check_done(&user(code, PORT, 3).run(), what);
        for iopl in 0..3 {
            check_end(&user(code, PORT, iopl).run(), what, GP, 0, 0);
        }
    }
});

test!(
    port_map,
    "The I/O permission map opens the ports it says, if all bytes of an access are open.",
    || {
        let all = [PORT, PORT + 1, PORT + 2, PORT + 3];
        for open in 0..16_usize {
            let mut ports = [0; 4];
            let chosen = all.iter().enumerate().filter(|(i, _)| open & 1 << i != 0);
            let mut count = 0;
            for (slot, (_, port)) in ports.iter_mut().zip(chosen) {
                *slot = *port;
                count += 1;
            }
            cpu::open_ports(&ports[..count]);
            for (what, width, code) in accesses() {
                let needed = (1 << width) - 1;
                let outcome = user(code, PORT, 0).run();
                if open & needed == needed {
                    check_done(&outcome, what);
                } else {
                    check_end(&outcome, what, GP, 0, 0);
                }
            }
        }
        cpu::close_ports();
    }
);

// The byte behind the last one of the map is read as well, and its bits are ones.
test!(port_map_end, "Ports at and beyond the end of the I/O permission map are closed.", || {
    let last = cpu::IO_MAP_PORTS as u16 - 1;
    cpu::open_ports(&[last - 3, last - 2, last - 1, last]);
    let [(_, _, byte), _, (_, _, word), ..] = accesses();
    check_done(&user(byte, last, 0).run(), "the last port of the map");
    check_done(&user(word, last - 1, 0).run(), "the last two ports of the map");
    check_end(&user(word, last, 0).run(), "a word over the map's end", GP, 0, 0);
    for port in [last + 1, last + 32, last + 0x400, 0xffff] {
        check_end(&user(byte, port, 0).run(), "a port beyond the map", GP, 0, 0);
    }
    cpu::close_ports();
    check_end(&user(byte, last, 0).run(), "after the map was taken away", GP, 0, 0);
});
