//! The server in pods: it answers each line with the name of its pod, the client's address and the line.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    thread,
};

/// Waits for SIGTERM, as the first process of a pod.
pub fn pause() -> ExitCode {
    until_terminated();
    ExitCode::SUCCESS
}

/// Serves ports by TCP and UDP until SIGTERM: `PORT` in both families, or `ADDRESS:PORT`.
pub fn main(ports: &[&str]) -> ExitCode {
    for port in ports {
        let at: SocketAddr = port.parse().unwrap_or_else(|_| ([0_u16; 8], port.parse().expect("a port")).into());
        let listener = TcpListener::bind(at).expect("a port that is free");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || _ = serve(stream));
            }
        });
        let socket = UdpSocket::bind(at).expect("a port that is free");
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                let question = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let _gone =
                    socket.send_to(answer(&client.ip().to_canonical().to_string(), &question).as_bytes(), client);
            }
        });
    }
    until_terminated();
    ExitCode::SUCCESS
}

fn serve(stream: TcpStream) -> std::io::Result<()> {
    let client = stream.peer_addr()?.ip().to_canonical().to_string();
    let mut writer = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        writer.write_all(answer(&client, &line?).as_bytes())?;
    }
    Ok(())
}

fn answer(client: &str, question: &str) -> String {
    let name = rustix::system::uname();
    format!("{} {client} {}\n", name.nodename().to_string_lossy(), question.trim_end())
}

/// Waits for SIGTERM, which the first process of a container would ignore by default.
fn until_terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { signal(SignalKind::terminate()).expect("SIGTERM").recv().await });
}
