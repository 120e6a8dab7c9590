//! The hidden verb `demo-process`: the processes of the demo. Each role has a file of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use super::{cleanup, clients, servers};

/// Arguments of `demo-process`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    role: Role,
}

#[derive(clap::Subcommand)]
enum Role {
    /// Wait for the end of the demo, and remove its resources.
    Cleanup(cleanup::Resources),
    /// Serve as the backends.
    Serve {
        /// NAME=ADDR:PORT of an HTTP server.
        #[arg(long)]
        http: Vec<String>,
        /// NAME=ADDR:PORT of a DNS server.
        #[arg(long)]
        dns: Vec<String>,
    },
    /// Ask a name server for its name, and print the answer.
    Ask {
        /// The name server.
        server: SocketAddr,
        /// Number of queries.
        #[arg(long, default_value_t = 1)]
        count: u32,
        /// Send all queries from one socket, instead of a new one for each.
        #[arg(long)]
        one_socket: bool,
    },
    /// Replace a file while connecting, and print when the last connection reached an unwanted backend.
    Edit {
        /// The new file.
        #[arg(long)]
        from: PathBuf,
        /// The file to replace.
        #[arg(long)]
        to: PathBuf,
        /// The address to connect to.
        #[arg(long)]
        dial: SocketAddr,
        /// Names of the backends that may answer after the edit; none: the connection is refused.
        #[arg(long)]
        want: Vec<String>,
    },
}

/// Runs the verb.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    match &args.role {
        Role::Cleanup(resources) => cleanup::main(resources),
        Role::Serve { http, dns } => servers::main(http, dns),
        Role::Ask { server, count, one_socket } => {
            let sockets = if *one_socket { clients::Sockets::Shared } else { clients::Sockets::OnePerQuery };
            clients::ask(*server, *count, sockets)
        }
        Role::Edit { from, to, dial, want } => clients::edit(from, to, *dial, want),
    }
}
