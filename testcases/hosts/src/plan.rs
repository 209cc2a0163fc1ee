//! Which cases go into which boot of an emulated host.
//!
//! A module's parameters are fixed when it is loaded, and devices when the machine starts, so cases that
//! need other ones need another boot.
//! Cases with equal needs share boots; when there are many, several machines run side by side, so
//! divided that they are done at about the same time.

use std::collections::BTreeMap;

use testcases::case::{Case, Subject};
use testcases::facts_table::FactsTable;
use testcases::need::{self, HostNeed, Need};

/// Module parameters: values by module (with `_`) and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Params(pub BTreeMap<(String, String), String>);

impl Params {
    /// The parameters of one module as they are given to it: `name=value name=value`.
    pub fn of(&self, module: &str) -> String {
        let plain = module.replace('-', "_");
        let words = self.0.iter().filter(|((m, _), _)| *m == plain);
        words.map(|((_, name), value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    /// These and `others`, which outweigh them.
    pub fn and(mut self, others: &Params) -> Params {
        self.0.extend(others.0.clone());
        self
    }

    /// As a person writes them, `module.name=value` each; empty if there are none.
    pub fn show(&self) -> String {
        let words = self.0.iter().map(|((module, name), value)| format!("{module}.{name}={value}"));
        words.collect::<Vec<_>>().join(" ")
    }
}

/// What a boot must be like.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// The case, by index, that is alone in it: it leaves the machine changed.
    pub alone: Option<usize>,
    /// Whether the machine has a device for vfio-pci that the host has not by itself.
    pub device: bool,
    /// The parameters that its modules are loaded with.
    pub params: Params,
}

/// The parameters that a case's boot must have: those given by the user, and those that it needs and
/// that a host started with `user` does not have already (as `facts` tell). A parameter that the
/// host's modules lack is left to the check of needs, as is one that the user set to another value.
pub fn params(case: &Case, user: &Params, facts: &FactsTable) -> Params {
    let mut params = user.clone();
    for need in &case.spec.needs {
        let Need::Module { module, param, value } = need else { continue };
        let has = facts.params.get(module).and_then(|m| m.get(param));
        let key = (module.clone(), param.clone());
        if has.is_some_and(|has| !need::reads_as(value, has)) && !user.0.contains_key(&key) {
            params.0.insert(key, value.clone());
        }
    }
    params
}

/// Whether a case needs a device for vfio-pci, and the host (as `facts` tell) has none.
pub fn lacks_device(case: &Case, facts: &FactsTable) -> bool {
    facts.vfio_device.is_err() && case.spec.needs.contains(&Need::Host(HostNeed::VfioDevice))
}

/// Groups cases, by index, by what their boots must be like; what the user wants comes first.
pub fn groups(cases: &[Case], user: &Params, facts: &FactsTable) -> Vec<(Wanted, Vec<usize>)> {
    let mut groups: BTreeMap<Wanted, Vec<usize>> = BTreeMap::new();
    for (index, case) in cases.iter().enumerate() {
        let device = lacks_device(case, facts);
        let changes = matches!(&case.spec.subject, Subject::Image(image) if image.leaves_changed(facts.processor));
        let alone = changes.then_some(index);
        let wanted = Wanted { alone, device, params: params(case, user, facts) };
        groups.entry(wanted).or_default().push(index);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(wanted, _)| {
        wanted.alone.is_some() || wanted.device || wanted.params != *user
    });
    groups
}

/// What goes into boots that are alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// The weight of each case.
    pub cases: Vec<u64>,
    /// What a boot weighs besides.
    pub boot: u64,
}

impl Load {
    fn total(&self) -> u64 {
        self.cases.iter().sum::<u64>() + self.boot
    }

    /// In how many boots it may go: each has at least `least` of the cases' weight.
    fn parts(&self, machines: usize, least: u64) -> usize {
        let parts = self.cases.iter().sum::<u64>() / least.max(1);
        usize::try_from(parts).unwrap_or(usize::MAX).clamp(1, machines.max(1))
    }
}

/// Divides the cases of each load into boots for this many machines, so that all machines are done at
/// about the same time: the loads that fill more than one boot are divided around the others. Returns
/// for each boot the load that it is of, and the indexes in it; in the order in which they start, the
/// heaviest first, each on the first machine that is free.
pub fn divide(loads: &[Load], machines: usize, least: u64) -> Vec<(usize, Vec<usize>)> {
    let machines = machines.max(1);
    let mut weights = vec![0; machines];
    let mut boots = Vec::new();
    let mut order: Vec<usize> = (0..loads.len()).filter(|&i| !loads[i].cases.is_empty()).collect();
    // Those that cannot be divided are assigned first, since the others give way to them.
    let splits = |load: &Load| load.parts(machines, least) > 1;
    order.sort_by_key(|&i| (splits(&loads[i]), std::cmp::Reverse(loads[i].total()), i));
    for at in order {
        let load = &loads[at];
        let mut bins: Vec<usize> = (0..machines).collect();
        bins.sort_by_key(|&machine| (weights[machine], machine));
        bins.truncate(load.parts(machines, least));
        let mut bins: Vec<_> = bins
            .into_iter()
            .map(|machine| (weights[machine] + load.boot, machine, vec![]))
            .collect();
        let mut heaviest: Vec<usize> = (0..load.cases.len()).collect();
        heaviest.sort_by_key(|&case| (std::cmp::Reverse(load.cases[case]), case));
        for case in heaviest {
            let (weight, _, cases) = bins.iter_mut().min_by_key(|bin| bin.0).expect("one at least");
            *weight += load.cases[case];
            cases.push(case);
        }
        for (weight, machine, cases) in bins.into_iter().filter(|(_, _, cases)| !cases.is_empty()) {
            boots.push((weight - weights[machine], at, cases));
            weights[machine] = weight;
        }
    }
    boots.sort_by_key(|&(weight, at, _)| (std::cmp::Reverse(weight), at));
    boots.into_iter().map(|(_, at, cases)| (at, cases)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use testcases::case::CaseId;
    use testcases::facts::{KvmFlavour, Processor};
    use testcases::kut::image::Image;

    use super::*;

    fn case(needs: &[&str]) -> Case {
        let text = format!("about = \"x\"\npayload = \"a::t\"\nneeds = {needs:?}\n");
        let id = CaseId { area: "a".into(), name: "n".into(), variant: None };
        Case { id, file: "n.toml".into(), spec: toml::from_str(&text).expect("a case") }
    }

    fn facts() -> FactsTable {
        let param = |name: &str, value: &str| (name.to_string(), value.to_string());
        FactsTable {
            kernel: "6.1".into(),
            cpu: "x".into(),
            processor: Processor::Tcg,
            flavour: KvmFlavour::Amd,
            kvm: Err("no matter".into()),
            params: BTreeMap::from([
                ("kvm".into(), BTreeMap::from([param("ignore_msrs", "N"), param("x", "0")])),
                ("kvm_amd".into(), BTreeMap::from([param("npt", "Y")])),
            ]),
            cpus: 2,
            memory: 1 << 30,
            free_hugepages: BTreeMap::new(),
            userfault: Err("no userfaultfd".into()),
            vfio_device: Err("no vfio-pci".into()),
        }
    }

    fn given(words: &[(&str, &str, &str)]) -> Params {
        let entry = |&(m, p, v): &(&str, &str, &str)| ((m.to_string(), p.to_string()), v.into());
        Params(words.iter().map(entry).collect())
    }

    #[test]
    fn cases_share_a_boot_unless_they_need_another_value() {
        let cases = [
            case(&["module:kvm.ignore_msrs=N"]),
            case(&["module:kvm_amd.npt=N"]),
            case(&[]),
            case(&["module:kvm_amd.npt=N", "cpuid:svm"]),
            case(&["module:kvm_intel.ept=N"]),
        ];
        let groups = groups(&cases, &Params::default(), &facts());
        let npt = given(&[("kvm_amd", "npt", "N")]);
        let plain = |params: &Params| Wanted { params: params.clone(), ..Wanted::default() };
        assert_eq!(groups, [(Wanted::default(), vec![0, 2, 4]), (plain(&npt), vec![1, 3])]);
        assert_eq!((npt.of("kvm-amd"), npt.of("kvm")), ("npt=N".to_string(), String::new()));
        assert_eq!(npt.show(), "kvm_amd.npt=N");
    }

    #[test]
    fn what_the_user_gives_is_not_overruled() {
        let user = given(&[("kvm_amd", "npt", "Y"), ("kvm", "x", "1")]);
        let cases = [case(&["module:kvm_amd.npt=N"]), case(&["module:kvm.ignore_msrs=Y"])];
        let groups = groups(&cases, &user, &facts());
        assert_eq!(groups[0], (Wanted { params: user.clone(), ..Wanted::default() }, vec![0]));
        assert_eq!(groups[1].0.params.of("kvm"), "ignore_msrs=Y x=1");
    }

    #[test]
    fn a_case_that_needs_a_device_has_a_boot_with_one_unless_the_host_has_it() {
        let cases = [case(&["host:vfio-device"]), case(&[]), case(&["host:vfio-device"])];
        let device = Wanted { device: true, ..Wanted::default() };
        let groups_of = |facts: &FactsTable| groups(&cases, &Params::default(), facts);
        assert_eq!(groups_of(&facts()), [(Wanted::default(), vec![1]), (device, vec![0, 2])]);
        let facts = FactsTable { vfio_device: Ok("0000:01:00.0".into()), ..facts() };
        assert_eq!(groups_of(&facts), [(Wanted::default(), vec![0, 1, 2])]);
    }

    #[test]
    fn an_image_that_leaves_tcg_changed_is_alone_there() {
        let image = |name: &str| {
            let mut case = case(&[]);
            case.spec.subject = Subject::Image(Box::new(Image {
                path: format!("/x86/{name}.flat").into(),
                config: name.into(),
                why_not: String::new(),
                checks: vec![],
            }));
            case
        };
        let cases = [image("debug"), image("apic"), image("debug"), case(&[])];
        let groups_of = |facts: &FactsTable| {
            let groups = groups(&cases, &Params::default(), facts);
            groups.into_iter().map(|(_, cases)| cases).collect::<Vec<_>>()
        };
        assert_eq!(groups_of(&facts()), [vec![1, 3], vec![0], vec![2]]);
        let facts = FactsTable { processor: Processor::Bochs, ..facts() };
        assert_eq!(groups_of(&facts), [vec![0, 1, 2, 3]]);
    }

    #[test]
    fn parameters_outweigh_those_before_them() {
        let (old, new) = (given(&[("a", "x", "1"), ("a", "y", "1")]), given(&[("a", "x", "2")]));
        assert_eq!(old.and(&new).of("a"), "x=2 y=1");
    }

    proptest! {
        #[test]
        fn each_case_is_in_one_boot_and_machines_are_done_together(
            cases in prop::collection::vec(prop::collection::vec(1..1000_u64, 0..60), 0..4),
            boot in 0..2000_u64,
            machines in 1..5_usize,
            least in 0..3000_u64,
        ) {
            let loads: Vec<_> = cases.into_iter().map(|cases| Load { cases, boot }).collect();
            let boots = divide(&loads, machines, least);
            for (at, load) in loads.iter().enumerate() {
                let of: Vec<_> = boots.iter().filter(|boot| boot.0 == at).collect();
                prop_assert!(of.len() <= load.parts(machines, least));
                let mut all = of.iter().flat_map(|(_, cases)| cases.clone()).collect::<Vec<_>>();
                all.sort();
                prop_assert_eq!(all, (0..load.cases.len()).collect::<Vec<_>>());
            }
            // As they run: each boot on the machine that is free first.
            let mut ends = vec![0; machines];
            let mut largest = 0;
            for (at, cases) in &boots {
                let weight = boot + cases.iter().map(|&i| loads[*at].cases[i]).sum::<u64>();
                let first = ends.iter_mut().min().expect("one at least");
                *first += weight;
                largest = largest.max(weight);
            }
            let (sum, end) = (ends.iter().sum::<u64>(), ends.into_iter().max().unwrap_or(0));
            prop_assert!(end <= sum / machines as u64 + largest);
        }
    }

    #[test]
    fn what_can_be_divided_gives_way_to_what_cannot() {
        let large = Load { cases: vec![10; 100], boot: 50 };
        let small = Load { cases: vec![100, 50], boot: 50 };
        let boots = divide(&[small, large], 2, 200);
        let lengths: Vec<_> = boots.iter().map(|(at, cases)| (*at, cases.len())).collect();
        // 650 beside 450 and 200.
        assert_eq!(lengths, [(1, 60), (1, 40), (0, 2)]);
    }

    #[test]
    fn loads_without_cases_are_not_booted() {
        assert_eq!(divide(&[Load { cases: vec![], boot: 5 }], 2, 1), []);
        assert_eq!(divide(&[], 2, 1), []);
    }
}
