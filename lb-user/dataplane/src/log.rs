//! The programs' log, with names of Services in place of ids. The programs only record while an agent reads.

use std::{
    os::fd::AsFd as _,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use aya_log::EbpfLogger;
use lb_common::LogGate;
use lb_kernel::async_fd;
use tracing::warn;

/// Time that the programs record after the last heartbeat.
const LISTENING: Duration = Duration::from_secs(15);

/// Interval of heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Returns the name of a service port by id.
pub type NameOf = Arc<dyn Fn(u32) -> Option<String> + Send + Sync>;

/// Reads the programs' records, and sends heartbeats so that they record.
pub struct DatapathLog {
    logger: EbpfLogger<Named>,
    gate: PerCpuArray<MapData, LogGate>,
    names: Arc<Mutex<Option<NameOf>>>,
}

impl DatapathLog {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self> {
        let names = Arc::new(Mutex::new(None));
        let gate = ebpf.take_map("LOG_GATE").context("the object lacks the map LOG_GATE")?.try_into()?;
        let logger = EbpfLogger::init_with_logger(ebpf, Named { names: Arc::clone(&names) })
            .context("opening the programs' log")?;
        Ok(Self { logger, gate, names })
    }

    /// Sends a heartbeat.
    ///
    /// # Errors
    /// If the map `LOG_GATE` cannot be written.
    pub fn listen(&mut self) -> Result<()> {
        listen(&mut self.gate)
    }

    /// Reads until the future is dropped.
    ///
    /// # Errors
    /// If the ring buffer cannot be polled.
    pub async fn run(mut self, name_of: NameOf) -> Result<()> {
        if let Ok(mut names) = self.names.lock() {
            *names = Some(name_of);
        }
        // A second descriptor of the ring buffer, only for epoll.
        let descriptor =
            self.logger.as_fd().try_clone_to_owned().context("duplicating the descriptor of the programs' log")?;
        let ready = async_fd::register(descriptor).context("waiting for the programs' log")?;
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                _ = heartbeat.tick() => listen(&mut self.gate)?,
                guard = ready.readable() => {
                    let mut guard = guard?;
                    self.logger.flush();
                    guard.clear_ready();
                }
            }
        }
    }
}

fn listen(gate: &mut PerCpuArray<MapData, LogGate>) -> Result<()> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = Duration::new(u64::try_from(now.tv_sec)?, u32::try_from(now.tv_nsec)?);
    let until = u64::try_from((now + LISTENING).as_nanos())?;
    let value = LogGate { listening_until: until, ..LogGate::default() };
    let cpus = nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))?;
    gate.set(0, PerCpuValues::try_from(vec![value; cpus])?, 0).context("opening the programs' log")
}

/// Passes records to `tracing`, with names.
struct Named {
    names: Arc<Mutex<Option<NameOf>>>,
}

impl log::Log for Named {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let names = self.names.lock().ok().and_then(|names| names.clone());
        let text = record.args().to_string();
        let text = with_names(&text, "service#", |id| names.as_ref().and_then(|name_of| name_of(id)));
        warn!(target: "beeline::datapath", "{}", with_names(&text, "process#", process));
    }

    fn flush(&self) {}
}

/// Returns name and pid of a process, if it still runs and is visible.
fn process(pid: u32) -> Option<String> {
    let name = lb_kernel::process::comm(Path::new(&format!("/proc/{pid}")))?;
    Some(format!("{name} (pid {pid})"))
}

/// Replaces each `mark` and the number after it by a name, if there is one.
fn with_names(text: &str, mark: &str, name_of: impl Fn(u32) -> Option<String>) -> String {
    let mut parts = text.split(mark);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (id, rest) = part.split_at(digits);
        match id.parse().ok().and_then(&name_of) {
            Some(name) => out.push_str(&name),
            None => {
                out.push_str(mark);
                out.push_str(id);
            }
        }
        out.push_str(rest);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_replaced_by_names_if_there_are_any() {
        let name_of = |id| (id == 7).then(|| "default/web:http/TCP".to_owned());
        assert_eq!(
            with_names("refused: service#7 port 80", "service#", name_of),
            "refused: default/web:http/TCP port 80"
        );
        assert_eq!(with_names("refused: service#8", "service#", name_of), "refused: service#8");
        assert_eq!(with_names("service#", "service#", name_of), "service#");
        assert_eq!(with_names("nothing", "service#", name_of), "nothing");
    }
}
