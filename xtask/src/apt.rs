//! Debian's packages through apt: search, install, and unpack without installing. Other files decide what is needed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::run;

/// A set of sources with lists of its own, for suites that the system's apt is not set up for.
pub(crate) struct Sources {
    dir: PathBuf,
}

impl Sources {
    /// Writes `lines` (of sources.list) into `dir` and fetches their lists. A suite that the mirror lacks is left out.
    pub(crate) fn fetch(dir: &Path, lines: &[String]) -> Result<Self> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(dir.join(sub)).with_context(|| format!("making {}", dir.join(sub).display()))?;
        }
        let list = dir.join("sources.list");
        std::fs::write(&list, lines.join("\n") + "\n").with_context(|| format!("writing {}", list.display()))?;
        let sources = Self { dir: dir.to_path_buf() };
        if let Err(error) = run::run(sources.apply(&mut apt_get()).args(["-q", "update"])) {
            run::note(&format!("    not every suite could be read ({error:#}); going on with the rest"));
        }
        Ok(sources)
    }

    /// Names of the packages that match a regular expression, with their best versions.
    pub(crate) fn search(&self, pattern: &str) -> Result<Vec<Package>> {
        let names = run::capture(self.apply(&mut apt_cache()).args(["search", "--names-only", pattern]))?;
        let names: Vec<&str> = names.lines().filter_map(|line| line.split_whitespace().next()).collect();
        let policy = run::capture(self.apply(&mut apt_cache()).arg("policy").args(&names))?;
        Ok(if names.is_empty() { Vec::new() } else { parse_policy(&policy) })
    }

    /// Downloads a package and unpacks it into `into`, without installing anything.
    pub(crate) fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        unpack_with(|command| _ = self.apply(command), package, into)
    }

    fn apply<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let option = |name: &str, value: String| ["-o".to_owned(), format!("{name}={value}")];
        let dir = |sub: &str| self.dir.join(sub).display().to_string();
        command
            .args(option("Dir::Etc::sourcelist", dir("sources.list")))
            .args(option("Dir::Etc::sourceparts", "-".to_owned()))
            .args(option("Dir::State::lists", dir("lists")))
            .args(option("Dir::Cache", dir("cache")))
            .args(option("Acquire::Languages", "none".to_owned()))
            .args(option("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".to_owned()))
            // A suite out of support is never signed anew.
            .args(option("Acquire::Check-Valid-Until", "false".to_owned()))
    }
}

/// A package and the version that apt would take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    /// Name of the package.
    pub(crate) name: String,
    /// Candidate version of the package.
    pub(crate) version: String,
}

/// The packages among `names` that apt offers. Reads the mirror's lists first, once per run of xtask.
pub(crate) fn offered(names: &[&str]) -> Result<Vec<Package>> {
    update()?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    Ok(parse_policy(&run::capture(apt_cache().arg("policy").args(names))?))
}

/// Names of the packages that match a regular expression.
pub(crate) fn search(pattern: &str) -> Result<Vec<String>> {
    update()?;
    let found = run::capture(apt_cache().args(["search", "--names-only", pattern]))?;
    Ok(found.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// Installs packages without their recommendations.
pub(crate) fn install(names: &[&str]) -> Result<()> {
    let all = names.join(" ");
    if !is_root() {
        bail!("missing: {all}. Run as root, or: apt-get install --no-install-recommends {all}");
    }
    update()?;
    run::step(&format!("apt-get install {all}"), || {
        let options = ["install", "-y", "-q", "--no-install-recommends"];
        run::run(apt_get().args(["-o", "Dpkg::Use-Pty=0"]).args(options).args(names))
    })
}

/// Downloads a package of the system's sources and unpacks it into `into`, without installing anything.
pub(crate) fn unpack(package: &str, into: &Path) -> Result<()> {
    update()?;
    unpack_with(|_| {}, package, into)
}

/// True if this process may install.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// True if the system has apt.
pub(crate) fn exists() -> bool {
    run::find("apt-get", &[]).is_some()
}

/// The `deb` lines of the system's sources, old format and new, as (address, suite) pairs.
pub(crate) fn system_sources() -> Vec<(String, String)> {
    let dir = std::fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = dir.chain(["/etc/apt/sources.list".into()]).collect();
    files.sort();
    let text = |file: &PathBuf| std::fs::read_to_string(file).ok();
    files
        .iter()
        .flat_map(|file| match file.extension().and_then(|ext| ext.to_str()) {
            Some("sources") => text(file).map(|text| parse_deb822(&text)),
            Some("list") => text(file).map(|text| parse_one_line(&text)),
            _ => None,
        })
        .flatten()
        .collect()
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // Others may be installing too; downloads into our own directories need no other user.
    command.args(["-o", "DPkg::Lock::Timeout=600", "-o", "APT::Sandbox::User=root"]);
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    command
}

fn apt_cache() -> Command {
    let mut command = Command::new("apt-cache");
    command.env("LC_ALL", "C");
    command
}

fn update() -> Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_some() || !is_root() {
        return Ok(());
    }
    run::step("apt-get update", || run::run(apt_get().args(["-q", "update"])))?;
    DONE.get_or_init(|| ());
    Ok(())
}

fn unpack_with(sources: impl Fn(&mut Command), package: &str, into: &Path) -> Result<()> {
    let download = into.join(".deb");
    std::fs::create_dir_all(&download).with_context(|| format!("making {}", download.display()))?;
    let mut fetch = apt_get();
    sources(&mut fetch);
    run::run(fetch.args(["-q", "download", package]).current_dir(&download))?;
    for deb in std::fs::read_dir(&download).context("listing what apt downloaded")? {
        run::run(Command::new("dpkg").arg("-x").arg(deb?.path()).arg(into))?;
    }
    std::fs::remove_dir_all(&download).with_context(|| format!("removing {}", download.display()))
}

/// Reads `apt-cache policy`: packages without a candidate are not offered.
fn parse_policy(text: &str) -> Vec<Package> {
    let mut packages = Vec::new();
    let mut name = None;
    for line in text.lines() {
        if let Some(header) = line.strip_suffix(':').filter(|header| !header.starts_with(' ')) {
            name = Some(header.to_owned());
        } else if let Some(version) = line.trim().strip_prefix("Candidate: ").filter(|version| *version != "(none)") {
            packages.extend(name.take().map(|name| Package { name, version: version.to_owned() }));
        }
    }
    packages
}

fn parse_deb822(text: &str) -> Vec<(String, String)> {
    let stanzas = text.split("\n\n").map(|stanza| {
        let field = |key: &str| {
            let lines = stanza.lines().filter_map(|line| line.split_once(':'));
            let value =
                lines.clone().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value.to_owned());
            value.unwrap_or_default()
        };
        let is_binary = field("Types").split_whitespace().any(|kind| kind == "deb");
        let is_off = field("Enabled").trim().eq_ignore_ascii_case("no");
        let (addresses, suites) = (field("URIs"), field("Suites"));
        let mut pairs = Vec::new();
        for address in addresses.split_whitespace().filter(|_| is_binary && !is_off) {
            pairs.extend(suites.split_whitespace().map(|suite| (address.to_owned(), suite.to_owned())));
        }
        pairs
    });
    stanzas.flatten().collect()
}

fn parse_one_line(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("deb "));
    let pair = |line: &str| {
        let line = line.trim();
        let rest = if line.starts_with('[') { line.split_once(']')?.1 } else { line };
        let mut words = rest.split_whitespace().map(str::to_owned);
        Some((words.next()?, words.next()?))
    };
    lines.filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_without_a_candidate_is_not_an_offer() {
        let text = "a:\n  Installed: (none)\n  Candidate: 1.2-3\n  Version table:\n     1.2-3 500\n        500 x y:\n\
                    b:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n";
        assert_eq!(parse_policy(text), [Package { name: "a".into(), version: "1.2-3".into() }]);
    }

    #[test]
    fn both_formats_of_sources_are_read() {
        let pairs =
            |list: &[(&str, &str)]| list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>();
        let new = "Types: deb deb-src\n# comment: x\nURIs: http://m/debian\nSuites: s s-updates\n\n\
                   Types: deb-src\nURIs: http://n\nSuites: s\n";
        assert_eq!(parse_deb822(new), pairs(&[("http://m/debian", "s"), ("http://m/debian", "s-updates")]));
        let old = "# deb http://off s main\ndeb [arch=amd64 signed-by=/k] http://m/debian s main\n\
                   deb-src http://m s main\ndeb http://n t\n";
        assert_eq!(parse_one_line(old), pairs(&[("http://m/debian", "s"), ("http://n", "t")]));
    }
}
