//! A server in a process of its own.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Read,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long a server may take until it answers, on a machine that does other things too.
const START_LIMIT: Duration = Duration::from_secs(90);
const CONNECT_LIMIT: Duration = Duration::from_millis(200);

/// The server's shell starts it, writes down its process id and waits for the end of its own input, which comes when
/// the test ends, however it does. A `Drop` alone would not run for a static, nor when the test is killed. The trap is
/// for a test that is interrupted from the keyboard, and stands after the start, or the server would ignore signals too.
const GUARD: &str = r#"
"$@" >>"$LOG" 2>&1 </dev/null &
trap '' INT TERM HUP
echo $! >"$PID.new"; mv "$PID.new" "$PID"
cat >/dev/null
kill -9 $! 2>/dev/null
"#;

/// How to start a server.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) command: Vec<OsString>,
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Where it answers once it is up.
    pub(crate) address: SocketAddr,
    /// Where its log and its process id stand.
    pub(crate) folder: PathBuf,
}

/// A running server, killed when dropped.
pub(crate) struct Running {
    guard: Child,
    process_id: String,
}

impl Program {
    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// Where it does not come up; its log is in the message.
    pub(crate) fn start(&self) -> Running {
        let id_file = self.folder.join("pid");
        fs::remove_file(&id_file).ok();
        let guard = Command::new("sh")
            .args(["-c", GUARD, self.name])
            .args(&self.command)
            .env("LOG", self.log())
            .env("PID", &id_file)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start `sh`: {error}"));
        let process_id = || fs::read_to_string(&id_file).ok().map(|id| id.trim().to_owned());
        let process_id = self.wait("be started", process_id);
        let running = Running { guard, process_id };
        self.wait("answer", || {
            TcpStream::connect_timeout(&self.address, CONNECT_LIMIT).ok()
        });
        running
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Waits until `condition` gives something.
    pub(crate) fn wait<T>(&self, what: &str, condition: impl Fn() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = condition() {
                return found;
            }
            assert!(
                began.elapsed() < START_LIMIT,
                "{} did not {what}; its log ends:\n{}",
                self.name,
                tail(&self.log())
            );
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

impl Running {
    /// Sends a signal to the server.
    pub(crate) fn signal(&self, signal: &str) {
        // It may have ended by itself.
        Command::new("kill")
            .args([signal, &self.process_id])
            .stderr(Stdio::null())
            .status()
            .ok();
    }

    /// Waits until the server's process is gone.
    pub(crate) fn wait_until_gone(&self) {
        let process = Path::new("/proc").join(&self.process_id);
        // Its parent, the shell, only collects it when it ends itself: until then it is a zombie, without a command line.
        while fs::read(process.join("cmdline")).is_ok_and(|line| !line.is_empty()) {
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal("-9");
        // The end of its input.
        drop(self.guard.stdin.take());
        self.guard.wait().ok();
    }
}

/// A port that is free at this moment.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("this machine has a free port");
    listener
        .local_addr()
        .expect("a bound listener has an address")
        .port()
}

/// The repository's root.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this crate is a folder of the repository")
}

fn tail(log: &Path) -> String {
    let mut text = String::new();
    if let Ok(mut file) = File::open(log) {
        file.read_to_string(&mut text).ok();
    }
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
