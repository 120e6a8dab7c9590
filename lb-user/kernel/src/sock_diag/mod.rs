//! Sockets of a network namespace, listed and destroyed by sock_diag(7).

mod bound_sockets;
mod channel;
mod closed_sockets;
mod entry_reader;
mod message;
mod own_socket;
mod peer_filter;

pub use bound_sockets::{BoundSocket, bound_sockets, listens};
pub use channel::{DestroyOutcome, SockDiag};
pub use closed_sockets::ClosedSockets;
pub use entry_reader::{UdpEntries, UdpEntryReader};
pub use message::{Activity, Socket, SocketId, SocketQuery, state};
pub use own_socket::{can_destroy, find_udp_socket};
pub use peer_filter::PeerFilter;
