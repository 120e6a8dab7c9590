//! The hidden verb `demo-part`: which part of the demo a process is. Each part stands in its own file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use super::{clients, janitor, servers};

/// Arguments of `demo-part`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    part: Part,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Wait for the demo's end, and remove what it made.
    Janitor(janitor::Things),
    /// Be the backends.
    Serve {
        /// NAME=ADDR:PORT of what answers over HTTP.
        #[arg(long)]
        http: Vec<String>,
        /// NAME=ADDR:PORT of what answers over DNS.
        #[arg(long)]
        dns: Vec<String>,
    },
    /// Ask a name server who it is, and tell who answered.
    Ask {
        /// What to ask.
        server: SocketAddr,
        /// How many questions.
        #[arg(long, default_value_t = 1)]
        count: u32,
        /// All from one socket, rather than each from its own.
        #[arg(long)]
        one_socket: bool,
    },
    /// Put a file into place while connecting, and tell when the last connection went elsewhere than wanted.
    Edit {
        /// The new file.
        #[arg(long)]
        from: PathBuf,
        /// The place.
        #[arg(long)]
        to: PathBuf,
        /// What to connect to.
        #[arg(long)]
        dial: SocketAddr,
        /// Names of the backends that may answer in the end; none of them: the connection is refused.
        #[arg(long)]
        want: Vec<String>,
    },
}

/// Runs the part.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    match &args.part {
        Part::Janitor(things) => janitor::main(things),
        Part::Serve { http, dns } => servers::main(http, dns),
        Part::Ask { server, count, one_socket } => {
            let form = if *one_socket { clients::Form::OneSocket } else { clients::Form::OwnSockets };
            clients::ask(*server, *count, form)
        }
        Part::Edit { from, to, dial, want } => clients::edit(from, to, *dial, want),
    }
}
