//! A real S3 server: versitygw over a temporary folder.

use std::{
    env, fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
};

use tempfile::TempDir;

use crate::child::{Program, Running, free_port, repository};

const ACCESS_KEY: &str = "tributary";
const SECRET_KEY: &str = "tributary-secret";
const BUCKET: &str = "lake";

/// An S3 server on a free port of this machine with one empty bucket. It is killed when this is dropped and when the test
/// ends.
pub struct VersityGw {
    program: Program,
    running: Option<Running>,
    folder: TempDir,
}

impl VersityGw {
    /// Starts the server and waits until it says that it is healthy.
    ///
    /// # Panics
    /// Where the server was not fetched, or it does not come up.
    pub fn start() -> Self {
        let tools =
            env::var_os("TRIBUTARY_TOOLS").map_or_else(|| repository().join(".cache/tools"), PathBuf::from);
        let server = tools.join("versitygw");
        assert!(
            server.exists(),
            "no S3 server at `{}`: run tests/s3/fetch (it needs Go)",
            server.display()
        );
        let folder = TempDir::with_prefix("s3-").expect("a temporary folder can be made");
        let data = folder.path().join("data");
        // A folder is a bucket.
        fs::create_dir_all(data.join(BUCKET)).expect("the temporary folder can be written");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let arguments = ["--port", &address.to_string(), "--health", "/health", "posix"].map(Into::into);
        let program = Program {
            name: "versitygw",
            command: [server.into()]
                .into_iter()
                .chain(arguments)
                .chain([data.into()])
                .collect(),
            environment: vec![
                ("ROOT_ACCESS_KEY", ACCESS_KEY.to_owned()),
                ("ROOT_SECRET_KEY", SECRET_KEY.to_owned()),
            ],
            address,
            folder: folder.path().to_owned(),
        };
        let mut server = Self {
            program,
            running: None,
            folder,
        };
        server.restart();
        server
    }

    /// Where it answers: `http://…`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.program.address)
    }

    /// Where its address is, without the scheme.
    pub(crate) fn address(&self) -> SocketAddr {
        self.program.address
    }

    /// The name of its bucket.
    pub fn bucket(&self) -> &'static str {
        BUCKET
    }

    /// The access key's id.
    pub fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    /// The access key's secret.
    pub fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// The folder that the bucket's objects are files of.
    pub fn bucket_folder(&self) -> PathBuf {
        self.folder.path().join("data").join(BUCKET)
    }

    /// Kills the server where it stands, as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.signal("-9");
            running.wait_until_gone();
        }
    }

    /// Starts the server again over its data, on the same port, and waits until it says that it is healthy.
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn restart(&mut self) {
        self.running = None;
        self.running = Some(self.program.start());
        self.program
            .wait("become healthy", || self.is_healthy().then_some(()));
    }

    fn is_healthy(&self) -> bool {
        let ask = || -> std::io::Result<String> {
            let mut connection = TcpStream::connect(self.program.address)?;
            connection.write_all(b"GET /health HTTP/1.1\r\nHost: s3\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs tests/s3/fetch"]
    fn a_server_that_was_killed_comes_back_over_its_data() {
        let mut server = VersityGw::start();
        assert!(server.bucket_folder().is_dir());
        server.kill();
        assert!(!server.is_healthy());
        server.restart();
        assert!(server.is_healthy());
    }
}
