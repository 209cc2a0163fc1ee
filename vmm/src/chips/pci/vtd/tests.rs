use proptest::prelude::*;

use super::*;
use crate::laws::{Answer, Op, Session};

fn new() -> Vtd {
    Vtd::new(true)
}

const ROOT: u64 = 0x1000;
const CONTEXTS: u64 = 0x2000;
const TABLE: u64 = 0x3000;
const NEXT: u64 = 0x4000;
const LAST: u64 = 0x5000;
const INTERRUPTS: u64 = 0x8000;
const QUEUE: u64 = 0x9000;
const EDU: Slot = Slot::new(4, 0);

struct Bench(Session<Vtd>);

impl Bench {
    /// A unit with a root table, a context entry for [`EDU`] with `levels`, and an interrupt table of 4
    /// entries; both kinds of remapping are on.
    fn new(levels: u64) -> Bench {
        let mut bench = Bench(Session::new(new(), new));
        bench.put(ROOT, &[CONTEXTS | 1, 0]);
        bench.put(CONTEXTS + 16 * 0x20, &[TABLE | 1, (levels - 2) | (7 << 8)]);
        bench.write(reg::ROOT, ROOT);
        bench.write(reg::INTERRUPTS, INTERRUPTS | 1);
        let tables = status::ROOT | status::TABLE;
        let on = status::TRANSLATION | status::INTERRUPTS;
        bench.command(tables);
        bench.command(on);
        bench
    }

    fn put(&mut self, at: u64, words: &[u64]) {
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.0.run(&[Op::Ram { addr: at, bytes }]).expect("lawful");
    }

    fn write(&mut self, at: u64, value: u64) -> Vec<Action> {
        self.0.run(&[Op::write(at, Size::B8, value)]).expect("lawful");
        self.0.trace.last().expect("a step").actions.clone()
    }

    fn command(&mut self, value: u32) -> Vec<Action> {
        self.write32(reg::COMMAND, value)
    }

    fn write32(&mut self, at: u64, value: u32) -> Vec<Action> {
        self.0.run(&[Op::write(at, Size::B4, value.into())]).expect("lawful");
        self.0.trace.last().expect("a step").actions.clone()
    }

    fn read(&mut self, at: u64, size: Size) -> u64 {
        self.0.run(&[Op::read(at, size)]).expect("lawful");
        match self.0.trace.last().expect("a step").answer {
            Answer::Read(Ok(value)) => value,
            other => panic!("a read of {at:#x} gives {other:?}"),
        }
    }

    fn translate(&mut self, address: u64, write: bool) -> Option<(u64, u64)> {
        let call = |d: &mut Vtd, env: &mut Env<'_>| d.translate(env, EDU, address, write);
        self.0.call(call).expect("lawful").0
    }

    fn remap(&mut self, from: Option<Slot>, address: u64, data: u32) -> Option<(u64, u32)> {
        let call = |d: &mut Vtd, env: &mut Env<'_>| d.remap(env, from, address, data, true);
        self.0.call(call).expect("lawful").0
    }

    /// The reason, requester and information of the fault that is recorded, which is cleared.
    fn fault(&mut self) -> Option<(u64, u64, u64)> {
        let [low, high] = [0, 8].map(|at| self.read(reg::RECORD + at, Size::B8));
        self.write32(reg::RECORD + 12, 1 << 31);
        assert_eq!(self.read(reg::RECORD + 8, Size::B8), 0, "cleared");
        (high & FAULT != 0).then_some((high >> 32 & 0xff, high & 0xffff, low))
    }
}

#[test]
fn the_unit_says_what_it_can() {
    let mut bench = Bench(Session::new(new(), new));
    assert_eq!(bench.read(reg::VERSION, Size::B4), 0x10);
    let capability = bench.read(reg::CAPABILITY, Size::B8);
    assert_eq!((capability >> 8 & 0x1f, capability >> 16 & 0x3f), (0b110, 47), "3 and 4 levels");
    assert_eq!((capability >> 24 & 0x3ff) * 16, reg::RECORD);
    let extended = bench.read(reg::EXTENDED, Size::B8);
    assert_eq!((extended & 0b11010, (extended >> 8 & 0x3ff) * 16), (0b1010, reg::IOTLB));
    let mut plain = Session::new(Vtd::new(false), || Vtd::new(false));
    plain.run(&[Op::read(reg::EXTENDED, Size::B4), Op::read(2, Size::B2)]).expect("lawful");
    assert_eq!(plain.trace[0].answer, Answer::Read(Ok(extended & 0xffff_ffff & !8)));
    assert_eq!(plain.trace[1].answer, Answer::Read(Err(IoError::Width)));
}

#[test]
fn commands_take_effect_at_once() {
    let mut bench = Bench(Session::new(new(), new));
    for (command, status) in [
        (status::QUEUE, status::QUEUE),
        (status::QUEUE | status::ROOT, status::QUEUE | status::ROOT),
        (status::QUEUE | status::TRANSLATION, status::ALL & 0xc400_0000),
        (0, status::ROOT),
    ] {
        bench.command(command);
        assert_eq!(bench.read(reg::STATUS, Size::B4), u64::from(status), "after {command:#x}");
    }
    // Invalidation by register is done when it is asked for, as finely as it is asked for.
    bench.write(reg::CONTEXT, 1 << 63 | 2 << 61 | 7);
    assert_eq!(bench.read(reg::CONTEXT, Size::B8), 2 << 61 | 2 << 59 | 7);
    bench.write(reg::IOTLB + 8, 1 << 63 | 3 << 60);
    assert_eq!(bench.read(reg::IOTLB + 8, Size::B8), 3 << 60 | 3 << 57);
}

#[test]
fn three_and_four_levels_lead_to_memory() {
    let mut bench = Bench::new(3);
    bench.put(TABLE + 8, &[NEXT | 3]);
    bench.put(NEXT + 8, &[LAST | 3, 0x60_0000 | 0x83]);
    bench.put(LAST + 8, &[0x7000 | 1]);
    let at = 1 << 30 | 1 << 21;
    assert_eq!(bench.translate(at | 0x1234, false), Some((0x7234, 0xdcc)));
    assert_eq!(bench.translate(1 << 30 | 2 << 21 | 0x1_2345, true), Some((0x61_2345, 0x1e_dcbb)));
    assert_eq!(bench.fault(), None);
    // It cannot be written.
    assert_eq!(bench.translate(at | 0x1234, true), None);
    assert_eq!(bench.fault(), Some((5, 0x20, at | 0x1000)));
    assert_eq!(bench.translate(1 << 39, false), None);
    assert_eq!(bench.fault(), Some((4, 0x20, 1 << 39)));
    let mut bench = Bench::new(4);
    bench.put(TABLE + 8, &[NEXT | 3]);
    bench.put(NEXT, &[0x4000_0000 | 0x83]);
    assert_eq!(bench.translate(1 << 39 | 0x1234_5678, true), Some((0x5234_5678, 0x2dcb_a988)));
    // Off, addresses are memory's; and nothing of interrupts is memory's.
    assert_eq!(bench.translate(0xfee0_1000, true), None);
    bench.command(0);
    assert_eq!(bench.translate(0x1234, true).map(|(at, _)| at), Some(0x1234));
}

#[test]
fn what_is_wrong_with_an_entry_is_recorded() {
    let context = CONTEXTS + 16 * 0x20;
    let cases: [(u64, [u64; 2], u64); 14] = [
        (ROOT, [0, 0], 0x1),
        (ROOT, [CONTEXTS | 3, 0], 0xa),
        (ROOT, [CONTEXTS | 1, 1], 0xa),
        (ROOT, [1 << 40 | 1, 0], 0x9),
        (context, [TABLE, 1], 0x2),
        (context, [TABLE | 1, 3], 0x3),
        (context, [TABLE | 1 | 1 << 2, 1], 0x3),
        (context, [TABLE | 1 | 1 << 4, 1], 0xb),
        (context, [TABLE | 1, 1 | 1 << 24], 0xb),
        (context, [1 << 40 | 1, 1], 0x7),
        (TABLE, [0, 0], 0x6),
        (TABLE, [0x80 | 1 | 1 << 12, 0], 0xc),
        (TABLE, [1 << 40 | 1, 0], 0x7),
        (TABLE, [2, 0], 0x6),
    ];
    for (at, words, reason) in cases {
        let mut bench = Bench::new(3);
        bench.put(TABLE, &[0x83]);
        bench.put(at, &words);
        assert_eq!(bench.translate(0x1000, false), None, "{at:#x} {words:x?}");
        assert_eq!(bench.fault(), Some((reason, 0x20, 0x1000)), "{at:#x} {words:x?}");
    }
    let mut bench = Bench::new(3);
    bench.put(context, &[TABLE | 1 | 2, 1]);
    assert_eq!((bench.translate(0, false), bench.fault()), (None, None), "not to be recorded");
    bench.put(context, &[1 | 2 << 2, 1]);
    assert_eq!(bench.translate(0x4321, true).map(|(at, _)| at), Some(0x4321), "pass-through");
}

#[test]
fn a_fault_is_told_once_until_it_is_looked_at() {
    let mut bench = Bench::new(3);
    let event = [(0x3c, 0x41), (0x40, 0xfee0_1003), (0x44, 9)];
    event.into_iter().for_each(|(at, value)| drop(bench.write32(at, value)));
    let call = |d: &mut Vtd, env: &mut Env<'_>| d.translate(env, EDU, 0, true);
    let told = vec![Action::Interrupt { address: 0xfee0_1000, data: 0x41 }];
    assert_eq!(bench.0.call(call).expect("lawful").1, [], "masked");
    assert_eq!(bench.read(reg::FAULT_EVENT, Size::B4), 0xc000_0000);
    assert_eq!(bench.write32(0x38, 0), told);
    assert_eq!(bench.0.call(call).expect("lawful").1, [], "told already");
    let both = faults::PENDING | faults::OVERFLOW;
    assert_eq!(bench.read(reg::FAULTS, Size::B4), u64::from(both));
    bench.write32(reg::FAULTS, both);
    assert_eq!(bench.read(reg::FAULTS, Size::B4), u64::from(faults::PENDING));
    assert_eq!(bench.fault(), Some((5, 0x20, 0)));
    assert_eq!(bench.0.call(call).expect("lawful").1, told);
}

/// 7.2.1: while an overflow is told, no fault is recorded, though there is room again.
#[test]
fn after_a_fault_that_was_lost_none_is_recorded() {
    let mut bench = Bench::new(3);
    let call = |d: &mut Vtd, env: &mut Env<'_>| d.translate(env, EDU, 0, true);
    (0..2).for_each(|_| drop(bench.0.call(call).expect("lawful")));
    assert_eq!(bench.fault(), Some((5, 0x20, 0)));
    bench.0.call(call).expect("lawful");
    assert_eq!(bench.read(reg::FAULTS, Size::B4), u64::from(faults::OVERFLOW));
    assert_eq!(bench.fault(), None);
    bench.write32(reg::FAULTS, faults::OVERFLOW);
    bench.0.call(call).expect("lawful");
    assert_eq!(bench.fault(), Some((5, 0x20, 0)));
}

/// An entry for a fixed interrupt.
fn entry(vector: u64, destination: u64, more: u64, source: u64) -> [u64; 2] {
    [1 | vector << 16 | destination << 40 | more, source]
}

#[test]
fn messages_become_what_their_entries_say() {
    let mut bench = Bench::new(3);
    let words = [
        entry(0x30, 1, 0, 0),
        entry(0x31, 2, 1 << 2 | 1 << 3 | 1 << 5, 0x20 | 1 << 18),
        entry(0x32, 3, 1 << 4, 0x24 | 1 << 18 | 1 << 16),
        entry(0x33, 0, 0, 0x0005 | 2 << 18),
    ];
    bench.put(INTERRUPTS, words.as_flattened());
    let handle = |index: u64| 0xfee0_0010 | index << 5;
    for (address, data, is) in [
        (handle(0), 0, (0xfee0_1000, 0x30)),
        (handle(1), 0xffff_ffff, (0xfee0_200c, 0x131)),
        (handle(1) | 8, 1, (0xfee0_3000, 0xc032)),
        (handle(3), 0, (0xfee0_0000, 0x33)),
    ] {
        assert_eq!(bench.remap(Some(EDU), address, data), Some(is), "{address:#x}");
    }
    assert_eq!(bench.fault(), None);
    // Another function, and the I/O APIC, which is not verified.
    let other = Slot::new(5, 0);
    assert_eq!(bench.remap(Some(other), handle(1), 0), None);
    assert_eq!(bench.fault(), Some((0x26, 0x28, 1 << 48)));
    assert_eq!(bench.remap(None, handle(1), 0), Some((0xfee0_200c, 0x131)));
    // The compatibility format passes where it is allowed.
    assert_eq!(bench.remap(Some(EDU), 0xfee0_3000, 0x41), None);
    assert_eq!(bench.fault(), Some((0x25, 0x20, 0)));
    bench.command(status::INTERRUPTS | status::COMPATIBILITY);
    assert_eq!(bench.remap(Some(EDU), 0xfee0_3000, 0x41), Some((0xfee0_3000, 0x41)));
    bench.command(0);
    assert_eq!(bench.remap(Some(EDU), handle(3), 0x41), Some((handle(3), 0x41)), "off");
}

#[test]
fn messages_that_have_no_entry_are_recorded() {
    let mut bench = Bench::new(3);
    let words = [[0, 0], [2, 0], entry(0x30, 0, 1 << 12, 0), entry(0x31, 0, 0, 3 << 18)];
    bench.put(INTERRUPTS, words.as_flattened());
    for (address, data, fault) in [
        (0xfee0_0010, 0, Some((0x22, 0x20, 0))),
        (0xfee0_0030, 0, None),
        (0xfee0_0050, 0, Some((0x24, 0x20, 2 << 48))),
        (0xfee0_0070, 0, Some((0x26, 0x20, 3 << 48))),
        (0xfee0_0090, 0, Some((0x21, 0x20, 4 << 48))),
        (0xfee0_0014, 0, Some((0x21, 0x20, 0x8000 << 48))),
        (0xfee0_0018, 0x1_0000, Some((0x20, 0x20, 0))),
    ] {
        assert_eq!(bench.remap(Some(EDU), address, data), None);
        assert_eq!(bench.fault(), fault, "{address:#x} {data:#x}");
    }
}

#[test]
fn the_queue_runs_to_its_tail() {
    let mut bench = Bench::new(3);
    let wait = |data: u64, flags: u64, at: u64| [5 | flags << 4 | data << 32, at];
    let words = [[1, 0], [2 | 1 << 4, 0], [4, 0], wait(7, 2, 0x6000), wait(8, 3, 0x6004)];
    bench.put(QUEUE, words.as_flattened());
    for (at, value) in [(0xa4, 0x42), (0xa8, 0xfee0_0000), (0xa0, 0)] {
        bench.write32(at, value);
    }
    bench.write(reg::QUEUE, QUEUE);
    bench.command(status::QUEUE);
    assert_eq!(bench.write(reg::QUEUE_TAIL, 0x40), []);
    assert_eq!(bench.read(reg::QUEUE_HEAD, Size::B8), 0x40);
    let told = vec![Action::Interrupt { address: 0xfee0_0000, data: 0x42 }];
    assert_eq!(bench.write(reg::QUEUE_TAIL, 0x50), told);
    let written = [0x6000, 0x6004].map(|at| bench.0.ram().read_u32(at));
    assert_eq!(written, [Ok(7), Ok(8)]);
    assert_eq!(bench.read(reg::COMPLETION, Size::B4), 1);
    bench.write32(reg::COMPLETION, 1);
    assert_eq!(bench.read(reg::COMPLETION, Size::B4), 0);
    // A descriptor of no type stops it, until that is acknowledged.
    bench.put(QUEUE + 0x50, &[0xf, 0, 1, 0]);
    bench.write(reg::QUEUE_TAIL, 0x70);
    assert_eq!(bench.read(reg::FAULTS, Size::B4), u64::from(faults::QUEUE));
    assert_eq!(bench.read(reg::QUEUE_HEAD, Size::B8), 0x50);
    bench.put(QUEUE + 0x50, &[1, 0]);
    bench.write32(reg::FAULTS, faults::QUEUE);
    assert_eq!(bench.read(reg::QUEUE_HEAD, Size::B8), 0x70);
    // A tail that is not in the queue ends, too.
    bench.write(reg::QUEUE_TAIL, 0x7_0000);
    bench.command(0);
    assert_eq!(bench.read(reg::QUEUE_HEAD, Size::B8), 0, "switched off");
}

proptest! {
    /// Pages that are mapped somewhere lead there, and others nowhere, whichever their addresses.
    #[test]
    fn a_mapping_is_found_and_no_other(
        pages in prop::collection::btree_map(0u64..1 << 36, (0u64..1 << 20, 1u64..4), 1..6),
        probes in prop::collection::vec(0u64..1 << 36, 0..4),
        offset in 0u64..4096,
    ) {
        let mut bench = Bench::new(4);
        let mut free = NEXT;
        for (page, (frame, rights)) in &pages {
            let mut table = TABLE;
            for level in [3, 2, 1] {
                let at = table + 8 * (page >> (9 * level) & 0x1ff);
                let entry = u64::from(bench.0.ram().read_u32(at).expect("RAM"));
                table = if entry == 0 {
                    bench.put(at, &[free | 3]);
                    free += 0x1000;
                    free - 0x1000
                } else {
                    entry & !0xfff
                };
            }
            bench.put(table + 8 * (page & 0x1ff), &[frame << 12 | rights]);
        }
        for page in pages.keys().chain(&probes) {
            for write in [false, true] {
                let bit = if write { 2 } else { 1 };
                let mapped = pages.get(page).filter(|(_, rights)| rights & bit != 0);
                let expected = mapped.map(|(frame, _)| (frame << 12 | offset, 4096 - offset));
                let found = bench.translate(page << 12 | offset, write);
                let reserved = page << 12 >> 20 == 0xfee;
                prop_assert_eq!(found, expected.filter(|_| !reserved), "{:#x}", page);
            }
        }
    }
}

crate::device_laws!(laws, new, prologues: [
    vec![
        Op::Ram { addr: QUEUE, bytes: vec![0x35, 0, 0, 0, 7, 0, 0, 0, 0, 0x60] },
        Op::write(reg::QUEUE, Size::B8, QUEUE),
        Op::write(reg::COMMAND, Size::B4, 1 << 26),
        Op::write(0xa0, Size::B4, 0),
        Op::write(reg::QUEUE_TAIL, Size::B4, 0x10),
    ],
]);
