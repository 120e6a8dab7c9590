//! Garbled files: random octets, and the scenarios' YAML with lines and characters lost, doubled and mixed. Reading
//! them never panics and ends in time, errors name file and line, and objects that were read are served.
//! `PROPTEST_CASES` sets the number of cases.

use std::{
    fs,
    path::Path,
    sync::LazyLock,
    time::{Duration, Instant},
};

use lb_agent::reconcile::Reconciler;
use lb_core::{
    event::{Event, Object, ObjectKind},
    model::Settings,
    store::MemoryStore,
};
use lb_sources::{directory as yaml_directory, yaml};
use proptest::{collection::vec, prelude::*, sample::Index, test_runner::TestCaseResult};

use crate::content;

/// The files of all scenarios.
static SEEDS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let entries = |path: &Path| fs::read_dir(path).expect("a directory").flatten().map(|entry| entry.path());
    let files = entries(&root).filter(|path| path.is_dir()).flat_map(|path| entries(&path).collect::<Vec<_>>());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|ext| ext == "yaml")).collect();
    files.sort();
    files.iter().map(|path| fs::read_to_string(path).expect("a file")).collect()
});

/// Pieces with a meaning in YAML, or in Kubernetes objects.
const PIECES: [&str; 34] = [
    "&a ",
    "*a",
    "<<: *a",
    "- ",
    "? ",
    ": ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "---\n",
    "...\n",
    "\t",
    "!!binary ",
    "!!int ",
    "!x ",
    "%YAML 9.9\n",
    "'",
    "\"",
    "|\n",
    ">-\n",
    "# ",
    "\u{0}",
    "\u{feff}",
    "\r",
    "~",
    "1e999",
    "-0x1",
    "0o17",
    "99999999999999999999",
    ".nan",
    "\\x",
    "\u{2028}",
];

/// One change of a text.
#[derive(Clone, Debug)]
enum Change {
    /// Removes a line.
    Delete(Index),
    /// Copies a line to another place.
    Copy(Index, Index),
    /// Inserts a line of another file.
    Splice(Index, Index, Index),
    /// Changes the indentation of a line.
    Indent(Index, usize),
    /// Inserts a piece between two octets.
    Insert(Index, &'static str),
    /// Flips a bit of an octet.
    Flip(Index, u8),
    /// Cuts the text.
    Cut(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        at().prop_map(Change::Delete),
        (at(), at()).prop_map(|(from, to)| Change::Copy(from, to)),
        (at(), at(), at()).prop_map(|(file, from, to)| Change::Splice(file, from, to)),
        (at(), 0_usize..7).prop_map(|(line, by)| Change::Indent(line, by)),
        (at(), prop::sample::select(PIECES.to_vec())).prop_map(|(at, piece)| Change::Insert(at, piece)),
        (at(), 0_u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        at().prop_map(Change::Cut),
    ]
}

impl Change {
    fn apply(&self, text: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        let mut lines: Vec<Vec<u8>> = text.split_inclusive(|&c| c == b'\n').map(<[u8]>::to_vec).collect();
        let count = lines.len();
        match self {
            Self::Delete(line) => drop(lines.remove(line.index(count))),
            Self::Copy(from, to) => lines.insert(to.index(count), lines[from.index(count)].clone()),
            Self::Splice(file, from, to) => {
                let other: Vec<&str> = file.get(&SEEDS).split_inclusive('\n').collect();
                lines.insert(to.index(count), from.get(&other).as_bytes().to_vec());
            }
            Self::Indent(line, by) => {
                let line = &mut lines[line.index(count)];
                let bare = line.iter().position(|&c| c != b' ').unwrap_or(0);
                line.splice(..bare, vec![b' '; *by]);
            }
            Self::Insert(at, piece) => {
                let at = at.index(text.len());
                text.splice(at..at, piece.bytes());
                return;
            }
            Self::Flip(at, bit) => {
                let at = at.index(text.len());
                text[at] ^= 1 << bit;
                return;
            }
            Self::Cut(at) => return text.truncate(at.index(text.len())),
        }
        *text = lines.concat();
    }
}

fn garbled() -> impl Strategy<Value = Vec<u8>> {
    let mutated = (any::<Index>(), vec(change(), 1..6)).prop_map(|(seed, changes)| {
        let mut text = seed.get(&SEEDS).clone().into_bytes();
        changes.iter().for_each(|change| change.apply(&mut text));
        text
    });
    let pieces = vec(prop_oneof![prop::sample::select(PIECES.to_vec()), Just("a"), Just("\n"), Just(" ")], 0..200);
    prop_oneof![
        8 => mutated,
        1 => vec(any::<u8>(), 0..400),
        1 => pieces.prop_map(|pieces| pieces.concat().into_bytes()),
    ]
}

/// Limit for reading a file and serving its objects, generous for emulators and busy machines.
const TIME_LIMIT: Duration = Duration::from_secs(5);

fn check_served(objects: &[Object]) -> TestCaseResult {
    let of = |kind| objects.iter().filter(|object| object.kind() == kind).cloned().collect();
    let mut reconciler = Reconciler::new(MemoryStore::default(), "node-1", Settings::default());
    reconciler.handle(ObjectKind::ALL.map(|kind| Event::Replace(kind, of(kind))));
    let report = reconciler.pass();
    prop_assert!(report.failure.is_none(), "{:?}", report.failure);
    content::check_consistent(&reconciler.store().dump);
    prop_assert_eq!(content::content(&reconciler.store().dump).len(), reconciler.store().dump.names.len());
    prop_assert_eq!(reconciler.pass().writes, 0);
    Ok(())
}

fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(cases), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(512))]

    #[test]
    fn any_text_is_read_or_refused_with_its_line(octets in garbled()) {
        let text = String::from_utf8_lossy(&octets);
        let start = Instant::now();
        match yaml::parse(&text, None) {
            Ok(objects) => check_served(&objects)?,
            Err(yaml::ParseError { document, line, reason }) => {
                // YAML ends a line at a lone carriage return too.
                let lines = text.split(['\n', '\r']).count() + 1;
                let is_there = document >= 1 && line >= 1 && line <= lines;
                prop_assert!(is_there, "{}:{} of {} in\n{}", document, line, lines, text);
                prop_assert!(!reason.is_empty(), "{}", text);
            }
        }
        prop_assert!(start.elapsed() < TIME_LIMIT, "{:?} for\n{}", start.elapsed(), text);
    }
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn files_beside_a_garbled_file_are_read(octets in garbled()) {
        let directory = tempfile::tempdir().expect("a directory");
        let (good, bad) = (directory.path().join("good.yaml"), directory.path().join("bad.yaml"));
        fs::write(&good, "{apiVersion: v1, kind: Node, metadata: {name: node-1}}").expect("a file");
        fs::write(&bad, &octets).expect("a file");
        let mut read = yaml_directory::DirectoryState::new(None);
        let events = yaml_directory::load(directory.path(), &mut read).expect("the directory is there");
        let nodes = events.iter().find_map(|event| match event {
            Event::Replace(ObjectKind::Node, objects) => Some(objects.len()),
            _ => None,
        });
        prop_assert!(nodes >= Some(1), "{:?}", events);
        let parsed = str::from_utf8(&octets).map(|text| yaml::parse(text, None));
        let is_of_file = |problem: &str| problem.contains("bad.yaml: ");
        let named = |part: &str| read.problems().any(|problem| is_of_file(problem) && problem.contains(part));
        match parsed {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => prop_assert!(named(&format!("line {}: ", error.line)), "{}", error),
            Err(_) => prop_assert!(named("UTF-8")),
        }
    }
}
