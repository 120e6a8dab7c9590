//! A client on a link that asks all the time, by ARP and NDP, which host has each address, and keeps the answers to
//! each question.

mod frames;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use lb_kernel::packet_socket::{PacketSocket, ReceivedFrames};

use frames::Told;

/// A link address.
pub type LinkAddress = [u8; 6];

/// Link address of the client. No interface has it, so that the kernel of its host learns nothing from the answers.
const OWN: LinkAddress = [2, 0, 0, 0, 0, 0x99];
/// Sender addresses, which answers repeat: they tell a late answer from one to the present question.
const SENDERS: u8 = 64;
/// Questions at once. The buffer of a socket takes the answers to some 250.
const BURST: usize = 64;
/// Age of answers that count as present ones. A busy machine delays the client.
const RECENT: Duration = Duration::from_millis(1500);
/// Shortest timeout of a socket.
const MOMENT: Duration = Duration::from_millis(1);

/// A question, and the hosts that answered it.
#[derive(Clone, Debug)]
pub struct Question {
    /// Time of the question.
    pub asked: Instant,
    /// The address asked for.
    pub address: IpAddr,
    /// Link addresses in the answers.
    pub answers: BTreeSet<LinkAddress>,
}

/// An announcement of an address, which no question asked for: a gratuitous ARP packet, or an unsolicited
/// advertisement.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// Time of its arrival.
    pub at: Instant,
    /// The address.
    pub address: IpAddr,
}

#[derive(Default)]
struct Log {
    questions: Vec<Question>,
    heard: Vec<Heard>,
}

/// The first of 64 addresses of each family from which a client asks, and which no host of the link may have.
pub type Senders = (Ipv4Addr, Ipv6Addr);

/// The client. It asks until [`NeighbourClient::end`].
pub struct NeighbourClient {
    addresses: BTreeSet<IpAddr>,
    log: Arc<Mutex<Log>>,
    ended: Arc<AtomicBool>,
    /// Thread of each family.
    threads: Vec<JoinHandle<()>>,
}

impl NeighbourClient {
    /// Starts to ask for each of the addresses once in an interval. `open` opens a socket on the device, for each
    /// family.
    ///
    /// # Panics
    /// If a socket cannot be opened.
    pub fn start(
        open: impl Fn(ReceivedFrames) -> io::Result<PacketSocket>,
        senders: Senders,
        addresses: impl IntoIterator<Item = IpAddr>,
        interval: Duration,
    ) -> Self {
        let addresses: BTreeSet<IpAddr> = addresses.into_iter().collect();
        let (log, ended) = (Arc::<Mutex<Log>>::default(), Arc::<AtomicBool>::default());
        let families = [
            (ReceivedFrames::Arp, IpAddr::from(senders.0)),
            (ReceivedFrames::NeighbourAdvertisements, IpAddr::from(senders.1)),
        ];
        let start = |(frames, first_sender): (ReceivedFrames, IpAddr)| {
            let is_asked = |address: &&IpAddr| address.is_ipv4() == first_sender.is_ipv4();
            let addresses: Vec<IpAddr> = addresses.iter().filter(is_asked).copied().collect();
            if addresses.is_empty() {
                return None;
            }
            let socket = open(frames).expect("a packet socket");
            let asker = Asker { socket, first_sender, interval, log: Arc::clone(&log) };
            let ended = Arc::clone(&ended);
            Some(std::thread::spawn(move || {
                for round in (0..SENDERS).cycle() {
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    asker.ask(&addresses, round);
                }
            }))
        };
        let threads = families.into_iter().filter_map(start).collect();
        Self { addresses, log, ended, threads }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the host of the last answer for each address, of the last one and a half seconds.
    pub fn answerers(&self) -> BTreeMap<IpAddr, LinkAddress> {
        let log = self.log();
        let recent = log.questions.iter().rev().take_while(|question| question.asked.elapsed() < RECENT);
        let mut answerers = BTreeMap::new();
        for question in recent {
            if let Some(answer) = question.answers.first() {
                answerers.entry(question.address).or_insert(*answer);
            }
        }
        answerers
    }

    /// True if every address has an answerer for which `is_so`.
    pub fn all_answered_by(&self, is_so: impl Fn(IpAddr, LinkAddress) -> bool) -> bool {
        let answerers = self.answerers();
        answerers.len() == self.addresses.len() && answerers.iter().all(|(address, link)| is_so(*address, *link))
    }

    /// Returns the longest time since `since` in which an address had no answer.
    pub fn longest_gap(&self, since: Instant) -> Duration {
        let log = self.log();
        let mut last: BTreeMap<IpAddr, Instant> = self.addresses.iter().map(|address| (*address, since)).collect();
        let mut longest = Duration::ZERO;
        for question in &log.questions {
            if question.asked >= since
                && !question.answers.is_empty()
                && let Some(before) = last.insert(question.address, question.asked)
            {
                longest = longest.max(question.asked - before);
            }
        }
        last.values().fold(longest, |longest, last| longest.max(last.elapsed()))
    }

    /// Returns the moves since `since` of the address that has moved most often.
    pub fn moves(&self, since: Instant) -> usize {
        let log = self.log();
        let mut last: BTreeMap<IpAddr, (LinkAddress, usize)> = BTreeMap::new();
        for question in log.questions.iter().filter(|question| question.asked >= since) {
            let Some(answer) = question.answers.first() else { continue };
            let (link, moves) = last.entry(question.address).or_insert((*answer, 0));
            *moves += usize::from(link != answer);
            *link = *answer;
        }
        last.into_values().map(|(_, moves)| moves).max().unwrap_or_default()
    }

    /// Returns the announcements since `since`.
    pub fn heard(&self, since: Instant) -> Vec<Heard> {
        self.log().heard.iter().filter(|heard| heard.at >= since).copied().collect()
    }

    /// Stops to ask. Returns the number of questions.
    ///
    /// # Panics
    /// If a question had answers of two hosts.
    pub fn end(mut self) -> usize {
        self.stop();
        let log = self.log();
        let doubled: Vec<&Question> = log.questions.iter().filter(|question| question.answers.len() > 1).collect();
        assert!(doubled.is_empty(), "questions with answers of two hosts: {doubled:?}");
        log.questions.len()
    }

    fn stop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().expect("no panic"));
    }
}

impl Drop for NeighbourClient {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Asker {
    socket: PacketSocket,
    first_sender: IpAddr,
    interval: Duration,
    log: Arc<Mutex<Log>>,
}

/// The questions of one round, and what was heard meanwhile.
struct Round {
    sender: IpAddr,
    questions: BTreeMap<IpAddr, Question>,
    heard: Vec<Heard>,
}

impl Asker {
    /// Asks once for each address, and takes answers for the length of an interval.
    fn ask(&self, addresses: &[IpAddr], number: u8) {
        let sender = match self.first_sender {
            IpAddr::V4(first) => IpAddr::from(Ipv4Addr::from_bits(first.to_bits() + u32::from(number))),
            IpAddr::V6(first) => IpAddr::from(Ipv6Addr::from_bits(first.to_bits() + u128::from(number))),
        };
        let mut round = Round { sender, questions: BTreeMap::new(), heard: Vec::new() };
        let end = Instant::now() + self.interval;
        for burst in addresses.chunks(BURST) {
            for address in burst {
                let question = Question { asked: Instant::now(), address: *address, answers: BTreeSet::new() };
                round.questions.insert(*address, question);
                // While the link is down the question is lost, as on a wire.
                let _lost = self.socket.send(&frames::question(OWN, sender, *address));
            }
            while self.take(&mut round, MOMENT) {}
        }
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.take(&mut round, left.max(MOMENT));
        }
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.questions.extend(round.questions.into_values());
        log.heard.append(&mut round.heard);
    }

    /// Takes a frame. False if none comes in this time.
    fn take(&self, round: &mut Round, wait: Duration) -> bool {
        let mut frame = [0; 128];
        let Ok(length) = self.socket.receive(&mut frame, wait) else { return false };
        match frame.get(..length).and_then(frames::told) {
            Some(Told { address, asker: None, .. }) => round.heard.push(Heard { at: Instant::now(), address }),
            Some(Told { address, link, asker: Some(asker) }) if asker == round.sender => {
                if let Some(question) = round.questions.get_mut(&address) {
                    question.answers.insert(link);
                }
            }
            _ => {}
        }
        true
    }
}
