//! A network that can be cut: clients reach a server through it.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

/// The way to a server, as its clients know it. What a cut client sends and is sent waits, and arrives when the cut is healed:
/// nobody is told that anything is wrong.
pub struct Link {
    address: SocketAddr,
    cuts: Arc<Cuts>,
}

#[derive(Default)]
struct Cuts {
    clients: Mutex<BTreeSet<String>>,
    healed: Condvar,
}

impl Link {
    /// A way to the server at `server`.
    ///
    /// # Panics
    /// Where this machine has no free port.
    pub fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("this machine has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let cuts = Arc::new(Cuts::default());
        let link = Self {
            address,
            cuts: Arc::clone(&cuts),
        };
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let cuts = Arc::clone(&cuts);
                thread::spawn(move || carry(client, server, &cuts));
            }
        });
        link
    }

    /// Where clients find the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts `client` off, by the name that it calls itself in the Kafka protocol; one that speaks another is called "".
    pub fn cut(&self, client: &str) {
        self.cuts.clients().insert(client.to_owned());
    }

    /// Lets all that waits for `client` through, and all that comes.
    pub fn heal(&self, client: &str) {
        self.cuts.clients().remove(client);
        self.cuts.healed.notify_all();
    }
}

impl Cuts {
    fn clients(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until_healed(&self, client: &str) {
        let waited = self.healed.wait_while(self.clients(), |cut| cut.contains(client));
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Carries one connection, until either side ends it.
fn carry(mut client: TcpStream, server: SocketAddr, cuts: &Arc<Cuts>) {
    let mut first = [0; 64 << 10];
    let Ok(length) = client.read(&mut first) else {
        return;
    };
    let first = &first[..length];
    let name = client_id(first).unwrap_or_default();
    cuts.wait_until_healed(&name);
    // A server that is not there is no server for the client either.
    let Ok(mut upstream) = TcpStream::connect(server) else {
        return;
    };
    if upstream.write_all(first).is_err() {
        return;
    }
    let (Ok(from_server), Ok(to_client)) = (upstream.try_clone(), client.try_clone()) else {
        return;
    };
    let back = {
        let (name, cuts) = (name.clone(), Arc::clone(cuts));
        thread::spawn(move || copy(from_server, to_client, &name, &cuts))
    };
    copy(client, upstream, &name, cuts);
    // It ends by itself where it panics, too.
    let _ = back.join();
}

fn copy(mut from: TcpStream, mut to: TcpStream, client: &str, cuts: &Cuts) {
    let mut bytes = [0; 64 << 10];
    loop {
        let length = from.read(&mut bytes).unwrap_or(0);
        cuts.wait_until_healed(client);
        if length == 0 || to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    // Either may be gone already.
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// The client's name in the header of a Kafka request: size (4 bytes), API key and version (2 each), correlation (4), and
/// the name's length (2) before the name. <https://kafka.apache.org/protocol#protocol_messages>
fn client_id(request: &[u8]) -> Option<String> {
    let api_key = i16::from_be_bytes(request.get(4..6)?.try_into().ok()?);
    let length = i16::from_be_bytes(request.get(12..14)?.try_into().ok()?);
    let name = request.get(14..14 + usize::try_from(length).ok()?)?;
    (0..256)
        .contains(&api_key)
        .then(|| String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cut_client_sends_arrives_when_the_cut_is_healed_and_others_notice_nothing() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let link = Link::to(server.local_addr().unwrap());
        let send = |name: &str| {
            let mut client = TcpStream::connect(link.address()).unwrap();
            let mut request = vec![0, 0, 0, 99, 0, 18, 0, 3, 0, 0, 0, 1, 0, name.len() as u8];
            request.extend(name.as_bytes());
            client.write_all(&request).unwrap();
            client
        };
        link.cut("sink-0");
        let (_cut, _other) = (send("sink-0"), send("sink-1"));
        let arrives = || {
            let (mut connection, _) = server.accept().unwrap();
            let mut request = [0; 20];
            connection.read_exact(&mut request).unwrap();
            client_id(&request).unwrap()
        };
        assert_eq!(arrives(), "sink-1");
        link.heal("sink-0");
        assert_eq!(arrives(), "sink-0");
    }
}
