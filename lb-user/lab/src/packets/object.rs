//! The tc programs and their maps.

use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{
        Array, HashMap, MapData, PerCpuArray, PerCpuValues,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{ProgramError, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions, TestRunResult},
};
use lb_common::{
    Addr, Affinity, AffinityKey, Announced, Backend, BackendStats, ClusterRanges, ConflictEntry, ConflictKey, Counter,
    Device, Flow, FlowEnds, FlowKey, FragmentKey, FragmentPorts, Frontend, FrontendKey, LinkAddr, Maglev, MaglevKey,
    NodeAddr, PortBlock, PortBlockKey, PortStats, Range, ServiceEntry, Slot, SlotKey,
};

/// Map sizes that a test may reduce.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FixtureSizes {
    /// Entries of `FLOWS`.
    pub flows: Option<u32>,
    /// Flows that may begin at a time on each CPU, before they are answered; none by default.
    pub opening: Option<u32>,
    /// Number of source ports for masquerade, from 1024 on.
    pub ports: Option<u32>,
}

/// The loaded tc programs with their maps.
pub struct TcPrograms(Ebpf);

/// Programs of one test alone, or programs that all tests share in turn: loading takes longer than most tests.
pub enum Loaded {
    /// Programs of this test alone.
    Own(Box<TcPrograms>),
    /// Shared, while this test has its turn.
    Shared(MutexGuard<'static, Option<TcPrograms>>),
}

impl Loaded {
    /// Takes programs with empty maps. `elf` is the eBPF object, aligned to 8 octets.
    pub fn take(elf: &[u8], sizes: FixtureSizes) -> Self {
        static SHARED: Mutex<Option<TcPrograms>> = Mutex::new(None);
        if sizes != FixtureSizes::default() {
            return Self::Own(Box::new(TcPrograms::load(elf, sizes)));
        }
        // The maps are emptied below, so a failed test may leave them in any state.
        let mut held = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        held.get_or_insert_with(|| TcPrograms::load(elf, sizes)).empty();
        Self::Shared(held)
    }
}

impl std::ops::Deref for Loaded {
    type Target = TcPrograms;

    fn deref(&self) -> &TcPrograms {
        match self {
            Self::Own(object) => object,
            Self::Shared(object) => object.as_ref().expect("loaded"),
        }
    }
}

impl std::ops::DerefMut for Loaded {
    fn deref_mut(&mut self) -> &mut TcPrograms {
        match self {
            Self::Own(object) => object,
            Self::Shared(object) => object.as_mut().expect("loaded"),
        }
    }
}

impl TcPrograms {
    fn load(elf: &[u8], sizes: FixtureSizes) -> Self {
        let (first, mut loader) = (1024_u16, EbpfLoader::new());
        loader.override_global("SNAT_FIRST", &first, true);
        if let Some(opening) = &sizes.opening {
            loader.override_global("OPENING_SLOTS", opening, true);
        }
        if let Some(ports) = &sizes.ports {
            loader.override_global("SNAT_COUNT", ports, true);
        }
        if let Some(flows) = sizes.flows {
            loader.map_max_entries("FLOWS", flows);
        }
        let mut object = Self(loader.load(elf).expect("the object's maps"));
        object.clear_flow_ends(true);
        for name in ["tc_ingress", "tc_egress"] {
            let program = object.0.program_mut(name).expect("a program of that name");
            let program: &mut SchedClassifier = program.try_into().expect("a program for tc");
            program.load().unwrap_or_else(|error| panic!("loading {name}: {error}"));
        }
        object
    }

    /// Runs a program.
    pub fn run(&self, program: &str, options: TestRunOptions<'_>) -> Result<TestRunResult, ProgramError> {
        let program = self.0.program(program).expect("a program of that name");
        let program: &SchedClassifier = program.try_into().expect("a program for tc");
        program.test_run(options)
    }

    /// Attaches a program to a device of this thread's network namespace, for the life of the device.
    pub fn attach(&mut self, program: &str, device: &str, to: TcAttachType) {
        let program = self.0.program_mut(program).expect("a program of that name");
        let program: &mut SchedClassifier = program.try_into().expect("a program for tc");
        let link = program.attach(device, to).unwrap_or_else(|error| panic!("attaching to {device}: {error}"));
        // Dropping the link would detach the program.
        std::mem::forget(program.take_link(link).expect("attached just now"));
    }

    /// A hash map by its name.
    pub fn map<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        self.0.map_mut(name).expect("a map of that name").try_into().expect("a hash map of these")
    }

    /// Writes a frontend, or a block of a port range, as the agent does.
    pub fn put_frontend(&mut self, key: FrontendKey, value: Frontend) {
        let (word, bit) = key.bit();
        let mut bits = self.frontend_bits();
        let have = bits.get(&word, 0).expect("a word");
        bits.set(word, have | bit, 0).expect("a word");
        if key.block == 0 {
            return self.map("FRONTENDS").insert(key, value, 0).expect("room");
        }
        let PortBlockKey { prefix_len, block } = PortBlockKey::of(&key);
        self.port_ranges().insert(&Key::new(prefix_len, block), value, 0).expect("room");
    }

    fn frontend_bits(&mut self) -> Array<&mut MapData, u64> {
        self.0.map_mut("FRONTEND_BITS").expect("a map of that name").try_into().expect("an array of these")
    }

    /// Writes an entry of `FLOWS`, with its mark.
    pub fn put_flow(&mut self, key: FlowKey, flow: Flow) {
        self.flow_ends().set(key.end(), 1, 0).expect("a mark");
        self.map("FLOWS").insert(key, flow, 0).expect("room");
    }

    /// Removes the marks of all ends of flows, and says if they are complete.
    pub fn clear_flow_ends(&mut self, are_complete: bool) {
        let mut ends = self.flow_ends();
        (0..FlowEnds::ARE_COMPLETE).for_each(|place| ends.set(place, 0, 0).expect("a mark"));
        ends.set(FlowEnds::ARE_COMPLETE, u64::from(are_complete), 0).expect("an element");
    }

    fn flow_ends(&mut self) -> Array<&mut MapData, u64> {
        self.0.map_mut("FLOW_ENDS").expect("a map of that name").try_into().expect("an array of these")
    }

    /// All entries of a hash map.
    pub fn entries<K: Pod, V: Pod>(&mut self, name: &str) -> Vec<(K, V)> {
        self.map(name).iter().collect::<Result<_, _>>().expect("a hash map without other writers")
    }

    /// The source ranges.
    pub fn source_ranges(&mut self) -> LpmTrie<&mut MapData, Range, u32> {
        self.0.map_mut("SOURCE_RANGES").expect("a map of that name").try_into().expect("a trie of these")
    }

    fn port_ranges(&mut self) -> LpmTrie<&mut MapData, PortBlock, Frontend> {
        self.0.map_mut("PORT_RANGES").expect("a map of that name").try_into().expect("a trie of these")
    }

    /// Writes the ranges of cluster IPs.
    pub fn set_cluster_ranges(&mut self, ranges: ClusterRanges) {
        let map = self.0.map_mut("CLUSTER_RANGES").expect("a map of that name");
        let mut map: Array<&mut MapData, ClusterRanges> = map.try_into().expect("an array of these");
        map.set(0, ranges, 0).expect("an element");
    }

    /// Writes the time until which the programs answer for announced addresses (CLOCK_BOOTTIME, ns).
    pub(crate) fn set_announced_until(&mut self, until: u64) {
        let map = self.0.map_mut("ANNOUNCED_UNTIL").expect("a map of that name");
        let mut map: Array<&mut MapData, u64> = map.try_into().expect("an array of these");
        map.set(0, until, 0).expect("an element");
    }

    fn counters(&mut self) -> PerCpuArray<&mut MapData, u64> {
        self.0.map_mut("COUNTERS").expect("a map of that name").try_into().expect("an array of these")
    }

    /// The value of a counter, over all CPUs.
    pub fn count(&mut self, counter: Counter) -> u64 {
        self.counters().get(&(counter as u32), 0).expect("a counter").iter().sum()
    }

    fn empty(&mut self) {
        self.empty_hash::<FrontendKey, Frontend>("FRONTENDS");
        let mut bits = self.frontend_bits();
        (0..bits.len()).for_each(|word| bits.set(word, 0, 0).expect("a word"));
        self.empty_hash::<u32, ServiceEntry>("SERVICES");
        self.empty_hash::<SlotKey, Slot>("SLOTS");
        self.empty_hash::<u32, Backend>("BACKENDS");
        self.empty_hash::<Addr, NodeAddr>("NODE_ADDRS");
        self.empty_hash::<u32, PortStats>("PORT_STATS");
        self.empty_hash::<u32, BackendStats>("BACKEND_STATS");
        self.empty_hash::<MaglevKey, Maglev>("MAGLEV");
        self.empty_hash::<FlowKey, Flow>("FLOWS");
        self.clear_flow_ends(true);
        self.empty_hash::<u32, u64>("PACKET_LINKS");
        self.empty_hash::<FragmentKey, FragmentPorts>("FRAGMENTS");
        self.empty_hash::<u32, Device>("DEVICES");
        self.empty_hash::<AffinityKey, Affinity>("AFFINITY");
        self.empty_hash::<Addr, Announced>("ANNOUNCED");
        self.empty_hash::<u32, LinkAddr>("LINK_ADDRS");
        self.empty_hash::<ConflictKey, ConflictEntry>("CONFLICTS");
        self.set_announced_until(0);
        self.set_cluster_ranges(ClusterRanges::default());
        let mut ranges = self.source_ranges();
        let keys: Vec<Key<Range>> = ranges.keys().flatten().collect();
        keys.iter().for_each(|key| ranges.remove(key).expect("a range"));
        let mut blocks = self.port_ranges();
        let keys: Vec<Key<PortBlock>> = blocks.keys().flatten().collect();
        keys.iter().for_each(|key| blocks.remove(key).expect("a block"));
        let zeros = vec![0; aya::util::nr_cpus().expect("a number of CPUs")];
        for counter in Counter::ALL {
            let zeros = PerCpuValues::try_from(zeros.clone()).expect("a value for each CPU");
            self.counters().set(counter as u32, zeros, 0).expect("a counter");
        }
    }

    fn empty_hash<K: Pod, V: Pod>(&mut self, name: &str) {
        let mut map = self.map::<K, V>(name);
        let keys: Vec<K> = map.keys().flatten().collect();
        keys.iter().for_each(|key| map.remove(key).expect("an entry"));
    }
}
