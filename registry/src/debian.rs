//! The registry that Debian ships as `docker-registry`, for tests: on a port of its own, with or
//! without users, killed and removed on drop. `infra/ensure-tools.sh test` installs it.

use std::{fmt::Write, fs, net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// Longest start, on machines with other work.
const START: Duration = Duration::from_secs(30);

/// A user of the registry. Hashes have the lowest cost: a registry checks one per request.
#[derive(Clone, Copy, Debug)]
pub struct User {
    /// The user's name.
    pub name: &'static str,
    /// The password.
    pub password: &'static str,
    /// bcrypt of the password.
    hash: &'static str,
}

/// A person. The password contains what base64's two alphabets encode differently.
pub const ANN: User = User {
    name: "ann",
    password: "ab~cd~ef~?>>>~~~",
    hash: "$2b$04$ayUTIQB1K2bHPflXvDO8RO3pu66UTmPsZ444usBzRmZfT0.DsYg/y",
};
/// The user of the second token of [`epsilon_cloud_aws::scripted`]'s AWS.
pub const SECOND_TOKEN: User = User {
    name: "AWS",
    password: "token-2",
    hash: "$2b$04$ls2v9cRq58nlYMPsExU.I.xADx2At0z.xIyr6fu1PxKtRdEU5Xzh2",
};
/// The user of moto's token.
pub const MOTO_TOKEN: User = User {
    name: "AWS",
    password: "123456789012-auth-token",
    hash: "$2b$04$tVNvKWsaUcOVZIvmrTq7HeqlJvgwXbq8zLHzCMT.RLC1JzInPUus2",
};

/// A running registry.
#[derive(Debug)]
pub struct DebianRegistry {
    address: SocketAddr,
    folder: TempDir,
    /// Killed on drop.
    process: Child,
}

impl DebianRegistry {
    /// Starts one that accepts everyone.
    ///
    /// # Panics
    /// As [`DebianRegistry::with_users`].
    pub async fn start() -> Self {
        Self::with_users(&[]).await
    }

    /// Starts one that accepts these users only; everyone when there are none.
    ///
    /// # Panics
    /// When it is not installed or does not start: a test that needs it has failed.
    pub async fn with_users(users: &[User]) -> Self {
        Self::with(users, None).await
    }

    /// Starts one with TLS, with this certificate and key (PEM).
    ///
    /// # Panics
    /// As [`DebianRegistry::with_users`].
    pub async fn with_tls(certificate: &str, key: &str) -> Self {
        Self::with(&[], Some((certificate, key))).await
    }

    async fn with(users: &[User], tls: Option<(&str, &str)>) -> Self {
        let folder = TempDir::with_prefix("epsilon-registry-").expect("a temporary folder");
        let auth = if users.is_empty() {
            String::new()
        } else {
            let path = folder.path().join("htpasswd");
            let lines = users.iter().fold(String::new(), |mut lines, user| {
                let _ = writeln!(lines, "{}:{}", user.name, user.hash);
                lines
            });
            fs::write(&path, lines).expect("a file in it");
            format!("auth: {{ htpasswd: {{ realm: epsilon, path: {path:?} }} }}\n")
        };
        let tls = tls.map_or(String::new(), |(certificate, key)| {
            let [one, two] = ["certificate.pem", "key.pem"].map(|name| folder.path().join(name));
            fs::write(&one, certificate).expect("a file in it");
            fs::write(&two, key).expect("a file in it");
            format!("http: {{ tls: {{ certificate: {one:?}, key: {two:?} }} }}\n")
        });
        let config = format!(
            "version: 0.1\nlog: {{ level: info }}\n{auth}{tls}\
             storage: {{ delete: {{ enabled: true }}, filesystem: {{ rootdirectory: {:?} }} }}\n",
            folder.path().join("data")
        );
        fs::write(folder.path().join("config.yml"), config).expect("a file in it");
        let (process, address) = spawn(&folder, ([127, 0, 0, 1], 0).into()).await;
        Self { address, folder, process }
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The directory of its blobs.
    pub fn blobs(&self) -> PathBuf {
        self.folder.path().join("data/docker/registry/v2/blobs/sha256")
    }

    /// Stops it; its data stays.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn stop(&mut self) {
        self.process.kill().await.expect("the registry ends");
    }

    /// Starts it again at the same address.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_again(&mut self) {
        (self.process, self.address) = spawn(&self.folder, self.address).await;
    }
}

async fn spawn(folder: &TempDir, address: SocketAddr) -> (Child, SocketAddr) {
    let mut process = Command::new("docker-registry")
        .arg("serve")
        .arg(folder.path().join("config.yml"))
        .env("REGISTRY_HTTP_ADDR", address.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("`docker-registry` is installed; run infra/ensure-tools.sh test");
    let mut words = BufReader::new(process.stderr.take().expect("it is piped")).lines();
    let listens = async {
        while let Ok(Some(line)) = words.next_line().await {
            if let Some((_, rest)) = line.split_once("listening on ") {
                return rest.split(['"', ',']).next().and_then(|address| address.parse().ok());
            }
        }
        None
    };
    let address = timeout(START, listens).await.ok().flatten();
    let address = address.expect("docker-registry says where it listens");
    // It writes a line for each request; a full pipe would stop it.
    tokio::spawn(async move { while let Ok(Some(_)) = words.next_line().await {} });
    (process, address)
}
