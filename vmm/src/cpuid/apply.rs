//! From what the host supports to what one vCPU is told.

use super::table::{MIRROR, NEEDS, feature};
use super::{CpuModel, Cpuid, CpuidError, EXTENDED, Feature, HYPERVISOR, Leaf, RANGE, Switch};

/// How a guest's processors are arranged. vCPUs are counted thread by thread, core by core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Packages.
    pub sockets: u32,
    /// Cores of a package.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
    /// From the APIC ID of one thread to that of the next: a power of two. Those between them are
    /// of threads that are not there, as where firmware has switched them off.
    pub step: u32,
}

impl Topology {
    /// One package with `cpus` cores of one thread each: APIC IDs count from 0 without a gap.
    pub const fn flat(cpus: u32) -> Topology {
        Topology { sockets: 1, cores: cpus, threads: 1, step: 1 }
    }

    /// Checks that CPUID can express it.
    ///
    /// # Errors
    /// When a count is 0, `step` is no power of two, or APIC IDs would need more than 16 bits.
    pub fn check(&self) -> Result<(), CpuidError> {
        let fits = [self.sockets, self.cores, self.threads, self.step]
            .iter()
            .all(|n| (1..=1 << 16).contains(n));
        if fits && self.step.is_power_of_two() && width(self.sockets) + self.package_width() <= 16 {
            Ok(())
        } else {
            Err(CpuidError::Topology(*self))
        }
    }

    /// How many vCPUs there are.
    pub fn cpus(&self) -> u32 {
        self.sockets * self.cores * self.threads
    }

    /// Bits of an APIC ID that number the threads of a core, those that are not there included.
    pub fn thread_width(&self) -> u32 {
        width(self.threads) + self.step.trailing_zeros()
    }

    /// Bits of an APIC ID that number the threads of a package.
    pub fn package_width(&self) -> u32 {
        self.thread_width() + width(self.cores)
    }

    /// The APIC ID of a vCPU: package, core and thread, each in as many bits as its count needs.
    pub fn apic_id(&self, vcpu: u32) -> u32 {
        let (thread, core) = (vcpu % self.threads, vcpu / self.threads % self.cores);
        let socket = vcpu / (self.threads * self.cores);
        let thread = thread * self.step;
        socket << self.package_width() | core << self.thread_width() | thread
    }
}

/// Bits that number `count` things.
fn width(count: u32) -> u32 {
    count.saturating_sub(1).checked_ilog2().map_or(0, |bits| bits + 1)
}

/// The feature behind a name of the table's own.
fn known(name: &str) -> Feature {
    feature(name).expect("the tests look up every name used here")
}

/// State components of XSAVE that need a feature: their bits of XCR0, and its name.
pub(super) const COMPONENTS: [(u32, &str); 5] = [
    (1 << 2, "avx"),
    (0b11 << 3, "mpx"),
    (0b111 << 5, "avx512f"),
    (1 << 9, "pku"),
    (0b11 << 17, "amx-tile"),
];

/// What the VMM provides, whatever the host supports.
const OURS: [&str; 3] = ["hypervisor", "ht", "kvm-hint-dedicated"];

impl CpuModel {
    /// What CPUID answers on vCPU number `vcpu`.
    ///
    /// `supported` is what the host can do: what KVM reports, with the features that it reports in
    /// other ways (`tsc-deadline` by a capability) already set.
    ///
    /// # Errors
    /// When the host does not support what the model asks for, or `vcpu` is not in the topology.
    pub fn apply(
        &self,
        supported: &Cpuid,
        vcpu: u32,
        topology: &Topology,
    ) -> Result<Cpuid, CpuidError> {
        topology.check()?;
        let cpus = topology.cpus();
        if vcpu >= cpus {
            return Err(CpuidError::Vcpu { vcpu, cpus });
        }
        let mut cpuid = supported.clone();
        if let Some(base) = self.base {
            base.limit(&mut cpuid);
            mirror(&mut cpuid);
        }
        cpuid.set(&known("hypervisor"), true);
        // These two follow CR4 of the running guest.
        cpuid.set(&known("osxsave"), false);
        cpuid.set(&known("ospke"), false);
        if let Some(vendor) = self.vendor {
            set_vendor(&mut cpuid, vendor);
        }
        set_topology(&mut cpuid, vcpu, topology);
        for Switch { feature, on } in &self.switches {
            if *on {
                let ours = OURS.contains(&feature.name);
                if !ours && !self.force && !supported.has(feature) {
                    if self.lenient {
                        continue;
                    }
                    return Err(CpuidError::Unsupported(*feature));
                }
                turn_on(&mut cpuid, feature);
            } else {
                turn_off(&mut cpuid, feature);
            }
        }
        trim_xsave(&mut cpuid);
        if let Some(name) = &self.name {
            set_name(&mut cpuid, name);
        }
        self.set_version(&mut cpuid);
        self.set_address_bits(&mut cpuid)?;
        if self.hide_kvm {
            cpuid.0.retain(|l| l.leaf & RANGE != HYPERVISOR);
        }
        Ok(cpuid)
    }

    /// Family, model and stepping in EAX of leaf 1, the larger numbers in the extended fields.
    fn set_version(&self, cpuid: &mut Cpuid) {
        let Some(leaf) = cpuid.get_mut(1, 0) else { return };
        let old = leaf.eax;
        let old_family = match old >> 8 & 0xf {
            0xf => 0xf + (old >> 20 & 0xff),
            family => family,
        };
        let family = self.family.unwrap_or(old_family);
        let model = self.model.unwrap_or((old >> 12 & 0xf0) | (old >> 4 & 0xf));
        let stepping = self.stepping.unwrap_or(old & 0xf);
        let extended_family = family.saturating_sub(0xf);
        leaf.eax = (old & 0xf000_f000)
            | extended_family << 20
            | (model >> 4) << 16
            | family.min(0xf) << 8
            | (model & 0xf) << 4
            | stepping;
    }

    fn set_address_bits(&self, cpuid: &mut Cpuid) -> Result<(), CpuidError> {
        let la57 = cpuid.has(&known("la57"));
        if cpuid.get(EXTENDED + 8, 0).is_none() && self.phys_bits.is_some() && self.force {
            cpuid.put(Leaf { leaf: EXTENDED + 8, eax: 48 << 8, ..Leaf::default() });
            cpuid.raise(EXTENDED + 8);
        }
        // Without the leaf a processor has 36 bits (SDM, volume 3, 4.1.4).
        let host = cpuid.get(EXTENDED + 8, 0).map_or(36, |l| l.eax as u8);
        let mut wanted = self.phys_bits;
        if let Some(asked) = wanted.filter(|&asked| asked > host && !self.force) {
            if !self.lenient {
                return Err(CpuidError::PhysBits { asked, host });
            }
            wanted = None;
        }
        if let Some(leaf) = cpuid.get_mut(EXTENDED + 8, 0) {
            if let Some(bits) = wanted {
                leaf.eax = leaf.eax & 0xff00 | u32::from(bits);
            }
            if !la57 && leaf.eax >> 8 & 0xff > 48 {
                leaf.eax = leaf.eax & !0xff00 | 48 << 8;
            }
        }
        Ok(())
    }
}

fn turn_on(cpuid: &mut Cpuid, feature: &Feature) {
    cpuid.set(feature, true);
    mirror(cpuid);
}

/// Clears a feature, and every one that needs it.
fn turn_off(cpuid: &mut Cpuid, feature: &Feature) {
    let mut off = vec![*feature];
    while let Some(feature) = off.pop() {
        cpuid.set(&feature, false);
        let needing = NEEDS.iter().filter(|(_, needed)| *needed == feature.name);
        off.extend(needing.map(|(name, _)| known(name)));
    }
    mirror(cpuid);
}

/// Brings the bits that AMD's processors repeat in line with leaf 1; others have none of them.
fn mirror(cpuid: &mut Cpuid) {
    let bits = cpuid.get(1, 0).map_or(0, |l| l.edx) & MIRROR;
    let bits = if cpuid.is_amd() { bits } else { 0 };
    if let Some(leaf) = cpuid.get_mut(EXTENDED + 1, 0) {
        leaf.edx = leaf.edx & !MIRROR | bits;
    }
}

fn set_vendor(cpuid: &mut Cpuid, vendor: [u8; 12]) {
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| vendor[at + i]));
    for first in [0, EXTENDED] {
        if let Some(leaf) = cpuid.get_mut(first, 0) {
            (leaf.ebx, leaf.edx, leaf.ecx) = (word(0), word(4), word(8));
        }
    }
    mirror(cpuid);
}

fn set_name(cpuid: &mut Cpuid, name: &str) {
    let mut bytes = [0; 48];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(47)) {
        *to = from;
    }
    for (leaf, part) in (EXTENDED + 2..).zip(bytes.chunks_exact(16)) {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| part[at + i]));
        let (eax, ebx, ecx, edx) = (word(0), word(4), word(8), word(12));
        cpuid.put(Leaf { leaf, eax, ebx, ecx, edx, ..Leaf::default() });
    }
    cpuid.raise(EXTENDED + 4);
}

/// Takes out of leaf 0xd the state components whose features are off.
fn trim_xsave(cpuid: &mut Cpuid) {
    if !cpuid.has(&known("xsave")) {
        // What is left of subleaf 1 was turned on by name after all.
        cpuid.0.retain(|l| l.leaf != 0xd || l.subleaf == 1 && l.eax != 0);
        return;
    }
    let off = COMPONENTS.iter().filter(|(_, name)| !cpuid.has(&known(name)));
    let off: u32 = off.map(|(bits, _)| bits).sum();
    cpuid
        .0
        .retain(|l| l.leaf != 0xd || l.subleaf < 2 || l.subleaf > 31 || off >> l.subleaf & 1 == 0);
    // The area's size if every component is enabled: 512 bytes and a header of 64, then each of
    // the user components at its offset.
    let user = |l: &&Leaf| l.leaf == 0xd && l.subleaf >= 2 && l.ecx & 1 == 0;
    let size = cpuid.0.iter().filter(user).map(|l| l.ebx.saturating_add(l.eax)).max();
    if let Some(leaf) = cpuid.get_mut(0xd, 0).filter(|l| l.eax & off != 0) {
        leaf.eax &= !off;
        leaf.ecx = size.unwrap_or(0).max(576);
        leaf.ebx = leaf.ebx.min(leaf.ecx);
    }
}

/// APIC IDs and counts, wherever CPUID tells them.
fn set_topology(cpuid: &mut Cpuid, vcpu: u32, topology: &Topology) {
    let id = topology.apic_id(vcpu);
    let (thread_width, package_width) = (topology.thread_width(), topology.package_width());
    let per_package = topology.cores * topology.threads;
    let amd = cpuid.is_amd();

    if let Some(leaf) = cpuid.get_mut(1, 0) {
        let ids = (1 << package_width).min(0xff);
        leaf.ebx = leaf.ebx & 0xffff | ids << 16 | (id & 0xff) << 24;
    }
    cpuid.set(&known("ht"), per_package > 1);
    // Caches: those of the first two levels are a core's, the others a package's.
    for leaf in
        cpuid.0.iter_mut().filter(|l| matches!(l.leaf, 4 | 0x8000_001d) && l.eax & 0x1f != 0)
    {
        let last_level = leaf.eax >> 5 & 7 >= 3;
        let sharing = if leaf.leaf == 4 {
            1 << if last_level { package_width } else { thread_width }
        } else if last_level {
            per_package
        } else {
            topology.threads
        };
        leaf.eax = leaf.eax & !(0xfff << 14) | (sharing - 1).min(0xfff) << 14;
        if leaf.leaf == 4 {
            let cores = (1u32 << (package_width - thread_width)) - 1;
            leaf.eax = leaf.eax & !(0x3f << 26) | cores.min(0x3f) << 26;
        }
    }
    for leaf in [0xb, 0x1f] {
        let there = cpuid.get(leaf, 0).is_some();
        cpuid.0.retain(|l| l.leaf != leaf);
        if there || leaf == 0xb && cpuid.highest(0) >= 0xb {
            // The levels: threads (type 1), cores (type 2), then one that ends the list.
            let levels =
                [(thread_width, topology.threads, 1), (package_width, per_package, 2), (0, 0, 0)];
            for (subleaf, (eax, ebx, kind)) in (0u32..).zip(levels) {
                let ecx = subleaf | kind << 8;
                let significant_subleaf = true;
                cpuid.put(Leaf { leaf, subleaf, eax, ebx, ecx, edx: id, significant_subleaf });
            }
        }
    }
    if let Some(leaf) = cpuid.get_mut(EXTENDED + 8, 0) {
        let counts = (per_package - 1).min(0xff) | package_width.min(0xf) << 12;
        leaf.ecx = if amd { leaf.ecx & !0xf0ff | counts } else { 0 };
    }
    if amd {
        cpuid.set(&known("cmp-legacy"), per_package > 1);
    }
    if let Some(leaf) = cpuid.get_mut(EXTENDED + 0x1e, 0) {
        leaf.eax = id;
        leaf.ebx = (vcpu / topology.threads % topology.cores) & 0xff | (topology.threads - 1) << 8;
        leaf.ecx = (vcpu / per_package) & 0xff;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::Reg;

    #[test]
    fn every_name_used_here_is_known() {
        let own = ["hypervisor", "osxsave", "ospke", "la57", "xsave", "ht", "cmp-legacy"];
        let all = own.iter().chain(&OURS).chain(COMPONENTS.iter().map(|(_, name)| name));
        for name in all {
            assert_eq!(known(name).name, *name);
        }
        for (name, needed) in NEEDS {
            assert_eq!((known(name).name, known(needed).name), (*name, *needed));
        }
        assert_eq!(known("ht").reg, Reg::Edx);
    }

    #[test]
    fn apic_ids_are_built_of_whole_bits() {
        let t = Topology { sockets: 2, cores: 3, threads: 2, step: 1 };
        let ids: Vec<_> = (0..t.cpus()).map(|i| t.apic_id(i)).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        let flat = Topology::flat(255);
        assert!((0..255).all(|i| flat.apic_id(i) == i));
        let sparse = Topology { step: 128, ..t };
        let ids: Vec<_> = (0..t.cpus()).map(|i| sparse.apic_id(i)).collect();
        assert_eq!(ids[..7], [0, 0x80, 0x100, 0x180, 0x200, 0x280, 0x400]);
        assert_eq!((sparse.thread_width(), sparse.package_width()), (8, 10));
        assert!(Topology { step: 3, ..t }.check().is_err());
        assert!(Topology { step: 1 << 14, ..t }.check().is_err());
        assert_eq!([1, 2, 3, 4, 5].map(width), [0, 1, 2, 2, 3]);
    }
}
