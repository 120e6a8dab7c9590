//! A client on a link that asks all the time by ARP which host has each address, and keeps the answers to each
//! question.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use lb_kernel::packet_socket::PacketSocket;

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
    pub address: Ipv4Addr,
    /// Link addresses in the answers.
    pub answers: BTreeSet<LinkAddress>,
}

/// An announcement of an address, which no question asked for (a gratuitous ARP packet).
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// Time of its arrival.
    pub at: Instant,
    /// The address.
    pub address: Ipv4Addr,
}

#[derive(Default)]
struct Log {
    questions: Vec<Question>,
    heard: Vec<Heard>,
}

/// The client. It asks until [`ArpClient::end`].
pub struct ArpClient {
    addresses: BTreeSet<Ipv4Addr>,
    log: Arc<Mutex<Log>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ArpClient {
    /// Starts to ask for each of the addresses once in an interval, on the socket's device. Senders of questions are 64
    /// addresses from `first_sender` on, which no host of the link may have.
    pub fn start(
        socket: PacketSocket,
        first_sender: Ipv4Addr,
        addresses: impl IntoIterator<Item = Ipv4Addr>,
        interval: Duration,
    ) -> Self {
        let addresses: BTreeSet<Ipv4Addr> = addresses.into_iter().collect();
        let (log, ended) = (Arc::<Mutex<Log>>::default(), Arc::<AtomicBool>::default());
        let asker = Asker { socket, first_sender: first_sender.to_bits(), interval, log: Arc::clone(&log) };
        let thread = std::thread::spawn({
            let (addresses, ended) = (addresses.clone(), Arc::clone(&ended));
            move || {
                for round in 0_u32.. {
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    asker.ask(&addresses, round);
                }
            }
        });
        Self { addresses, log, ended, thread: Some(thread) }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the host of the last answer for each address, of the last one and a half seconds.
    pub fn answerers(&self) -> BTreeMap<Ipv4Addr, LinkAddress> {
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
    pub fn all_answered_by(&self, is_so: impl Fn(Ipv4Addr, LinkAddress) -> bool) -> bool {
        let answerers = self.answerers();
        answerers.len() == self.addresses.len() && answerers.iter().all(|(address, link)| is_so(*address, *link))
    }

    /// Returns the longest time since `since` in which an address had no answer.
    pub fn longest_gap(&self, since: Instant) -> Duration {
        let log = self.log();
        let mut last: BTreeMap<Ipv4Addr, Instant> = self.addresses.iter().map(|address| (*address, since)).collect();
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
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
    }
}

impl Drop for ArpClient {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Asker {
    socket: PacketSocket,
    first_sender: u32,
    interval: Duration,
    log: Arc<Mutex<Log>>,
}

/// The questions of one round, and what was heard meanwhile.
struct Round {
    sender: Ipv4Addr,
    questions: BTreeMap<Ipv4Addr, Question>,
    heard: Vec<Heard>,
}

impl Asker {
    /// Asks once for each address, and takes answers for the length of an interval.
    fn ask(&self, addresses: &BTreeSet<Ipv4Addr>, number: u32) {
        let sender = Ipv4Addr::from_bits(self.first_sender + number % u32::from(SENDERS));
        let mut round = Round { sender, questions: BTreeMap::new(), heard: Vec::new() };
        let end = Instant::now() + self.interval;
        let all: Vec<Ipv4Addr> = addresses.iter().copied().collect();
        for burst in all.chunks(BURST) {
            for address in burst {
                let question = Question { asked: Instant::now(), address: *address, answers: BTreeSet::new() };
                round.questions.insert(*address, question);
                // While the link is down the question is lost, as on a wire.
                let _lost = self.socket.send(&frame_of(sender, *address));
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
        if let Some(packet) = frame.get(..length).and_then(Packet::parse) {
            if packet.sender == packet.target {
                round.heard.push(Heard { at: Instant::now(), address: packet.sender });
            } else if packet.is_answer
                && packet.target == round.sender
                && let Some(question) = round.questions.get_mut(&packet.sender)
            {
                question.answers.insert(packet.link);
            }
        }
        true
    }
}

fn frame_of(sender: Ipv4Addr, address: Ipv4Addr) -> Vec<u8> {
    // To all, ARP; Ethernet, IPv4, request.
    let parts: [&[u8]; 8] = [
        &[0xff; 6],
        &OWN,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &OWN,
        &sender.octets(),
        &[0; 6],
        &address.octets(),
        &[0; 18],
    ];
    parts.concat()
}

/// An ARP packet that the client hears.
struct Packet {
    is_answer: bool,
    /// Link address of the sender.
    link: LinkAddress,
    sender: Ipv4Addr,
    target: Ipv4Addr,
}

impl Packet {
    /// Parses a frame; none if it has no ARP of Ethernet and IPv4.
    fn parse(frame: &[u8]) -> Option<Self> {
        let arp = frame.get(14..42)?;
        if frame.get(12..14)? != [8, 6] || arp.get(..6)? != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(arp.get(at..at + 4)?).ok()?));
        Some(Self {
            is_answer: arp.get(6..8)? == [0, 2],
            link: arp.get(8..14)?.try_into().ok()?,
            sender: address(14)?,
            target: address(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_an_arp_request_of_the_least_length_of_a_frame() {
        let frame = frame_of([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        assert_eq!(frame.len(), 60);
        let packet = Packet::parse(&frame).expect("ARP");
        assert!(!packet.is_answer);
        assert_eq!((packet.link, packet.sender, packet.target), (OWN, [10, 0, 0, 1].into(), [10, 0, 0, 2].into()));
        assert!(Packet::parse(&frame[..41]).is_none());
    }
}
