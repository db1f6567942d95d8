//! `epsilon backup FILE`: what a platform cannot make again, in one file (`crate::backup` has the
//! format): the store, keys and certificates of the data folder, and the images that only this
//! machine's engine has. Works beside a running platform and sends it no request: the store is
//! copied in one transaction, and images do not change.

mod images;
mod report;

use crate::{
    backup::{
        DATA, IMAGES, STORE, folder,
        manifest::{self, FORMAT, LeftOut, Manifest},
        write::{self, Piece},
    },
    data_dir,
    failure::Failure,
    globals::Globals,
};
use clap::Args;
use epsilon_bootstrap::{lock, log, settings::Layers, signals::ShutdownSignals};
use epsilon_builder::{
    config::{Config, Settings},
    source::Hasher,
};
use epsilon_store::{BackedUp, BackupError};
use jiff::Timestamp;
use report::FinishedBackup;
pub(super) use report::ProgressLine;
use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// A running gateway writes a heartbeat into its store each few seconds. One whose last is older
/// than this has another store.
const HEARTBEAT_STALE: Duration = Duration::from_secs(600);

#[derive(Debug, Args)]
#[command(after_help = "\
A backup has the store (SQLite), keys, tokens and certificates of the data folder, and the images
of all versions that serve or can be rolled back to, where no registry has them. It does not have
functions' logs, caches, pushed git repositories and settings files. It holds the keys of the
platform, so only its owner can read it. Keep it secret.

  epsilon backup /backup/epsilon-$(date +%F).tar.gz
  epsilon restore /backup/epsilon-2026-11-30.tar.gz")]
pub(crate) struct Backup {
    /// The file to write; compressed if its name ends in `.gz` or `.tgz`
    file: PathBuf,
    /// Settings of the platform, YAML: its container engine and the gateway's store
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Replace an existing file, once the new one is complete
    #[arg(long)]
    force: bool,
}

/// What a backup is made of.
struct Maker {
    data: PathBuf,
    file: PathBuf,
    /// The store's file; none if the store is a database server.
    store: Option<PathBuf>,
    config: Config,
    stop: Arc<AtomicBool>,
    shown: ProgressLine,
}

impl Backup {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let _logging = log::init(Some(log::Format::Compact), Some(&filter()))?;
        let data = data_dir::locate(globals.data_dir.as_deref())?;
        if !data.is_dir() {
            return Err(no_platform(&data));
        }
        let file = self.target(&data)?;
        let (config, store) = settings(self.config.as_deref(), &data)?;
        let maker = Maker {
            store: store_of(&data, store.as_deref())?,
            data,
            file,
            config,
            stop: Arc::default(),
            shown: ProgressLine::new(),
        };
        let mut signals = ShutdownSignals::new()?;
        let made = tokio::select! {
            biased; // the signal first
            signal = signals.next() => {
                maker.stop.store(true, Ordering::Relaxed);
                Err(Failure::new("INTERRUPTED", format!("interrupted by {signal}; no backup was made")))
            }
            made = maker.make() => made,
        };
        drop(maker);
        report::print(&made?, globals.json)
    }

    /// The absolute path of the file to write. It has to be outside of the data folder.
    fn target(&self, data: &Path) -> Result<PathBuf, Failure> {
        let shown = self.file.display();
        let cannot =
            |why: &str| Failure::usage(format!("no backup can be written to `{shown}`: {why}"));
        let file = std::path::absolute(&self.file)
            .map_err(|err| cannot("it has no absolute path").with_cause(&err))?;
        if file.is_dir() || file.file_name().is_none() {
            return Err(cannot("it is a folder").hint("name a file in it"));
        }
        let folder = write::folder_of(&file);
        let Ok(real) = folder.canonicalize() else {
            return Err(cannot("its folder does not exist"));
        };
        if data.canonicalize().is_ok_and(|data| real.starts_with(data)) {
            return Err(cannot("it is inside of the data folder, and would be lost with it"));
        }
        if file.exists() && !self.force {
            return Err(cannot("it already exists").hint("name another one, or give `--force`"));
        }
        Ok(file)
    }
}

impl Maker {
    async fn make(&self) -> Result<FinishedBackup, Failure> {
        let work = tempfile::Builder::new()
            .prefix(".epsilon-backup-")
            .tempdir_in(write::folder_of(&self.file))
            .map_err(|err| self.unwritable(&err))?;
        let mut pieces = Vec::new();

        self.shown.say("the store");
        let copied = match &self.store {
            Some(store) => {
                Some(self.copy_store(store, &work.path().join(STORE), &mut pieces).await?)
            }
            None => None,
        };
        let folder::Found { files, skipped } = folder::collect(&self.data).map_err(|err| {
            Failure::new("DATA_DIR", format!("`{}` cannot be read", self.data.display()))
                .with_cause(&err)
        })?;
        if copied.is_none() && !files.iter().any(|(name, _)| name == "admin.key") {
            return Err(no_platform(&self.data));
        }
        let keys: Vec<_> = files.iter().map(|(name, _)| name.clone()).collect();
        pieces.extend(
            files.into_iter().map(|(name, content)| in_memory(&format!("{DATA}/{name}"), content)),
        );

        let versions = copied.as_ref().map(|copied| &copied.versions[..]).unwrap_or_default();
        let taken = images::take(&self.config, versions, work.path(), &self.shown).await?;
        for file in taken.files {
            let listed = manifest::File {
                path: format!("{IMAGES}/{}", file.path),
                bytes: file.bytes(),
                sha256: file.sha256().to_owned(),
            };
            pieces.push(Piece { file: listed, open: Box::new(move || file.open()) });
        }

        let manifest = Manifest {
            format: FORMAT,
            epsilon: env!("CARGO_PKG_VERSION").into(),
            created_at: Timestamp::now(),
            store: match &copied {
                Some(_) => manifest::Store::Sqlite,
                None => manifest::Store::Elsewhere,
            },
            functions: copied.as_ref().map_or(0, |copied| copied.functions),
            versions: versions.len(),
            images: taken.images,
            left_out: taken.left_out,
            files: pieces.iter().map(|piece| piece.file.clone()).collect(),
        };
        let file = self.file.clone();
        let stop = Arc::clone(&self.stop);
        let on_write = self.shown.bytes(manifest.bytes());
        let (bytes, manifest) = blocking(move || {
            let bytes = write::write(&file, &manifest, &pieces, &on_write, &stop)?;
            Ok((bytes, manifest))
        })
        .await
        .map_err(|err| self.unwritable(&err))?;
        Ok(FinishedBackup { file: self.file.clone(), bytes, keys, skipped, manifest })
    }

    async fn copy_store(
        &self,
        store: &Path,
        copy: &Path,
        pieces: &mut Vec<Piece>,
    ) -> Result<BackedUp, Failure> {
        let shown = store.display();
        let copied = epsilon_store::back_up(store, copy).await.map_err(|err| {
            let failure =
                Failure::new("STORE", format!("no backup was made: `{shown}`")).with_cause(&err);
            match err {
                BackupError::Newer => {
                    failure.hint("back it up with the `epsilon` of the gateway that uses it")
                }
                BackupError::Store(_) | BackupError::File(_) => failure,
            }
        })?;
        let ago =
            copied.last_heartbeat.map(|at| Timestamp::now().duration_since(at).unsigned_abs());
        if lock::is_taken(&self.data) && ago.is_none_or(|ago| ago > HEARTBEAT_STALE) {
            let message = format!(
                "no backup was made: the gateway that runs on `{}` does not use the store `{shown}`",
                self.data.display()
            );
            return Err(Failure::new("STORE_ELSEWHERE", message).hint(
                "name its store as the gateway's settings do: `gateway.store` in `--config FILE`, or EPSILON_GATEWAY_STORE",
            ));
        }
        let path = copy.to_owned();
        let listed = blocking(move || digest(&path)).await.map_err(|err| self.unwritable(&err))?;
        let copy = copy.to_owned();
        let open = move || Ok(Box::new(std::fs::File::open(&copy)?) as Box<dyn io::Read + Send>);
        pieces.push(Piece { file: listed, open: Box::new(open) });
        Ok(copied)
    }

    fn unwritable(&self, err: &(dyn Error + 'static)) -> Failure {
        let message = format!("no backup was made: `{}` cannot be written", self.file.display());
        Failure::new("BACKUP", message).with_cause(err)
    }
}

fn in_memory(path: &str, content: Vec<u8>) -> Piece {
    let sha256 = Hasher::default().with(&content).finish().to_string();
    let file = manifest::File { path: path.into(), bytes: content.len() as u64, sha256 };
    let content = bytes::Bytes::from(content);
    let open = move || Ok(Box::new(io::Cursor::new(content.clone())) as Box<dyn io::Read + Send>);
    Piece { file, open: Box::new(open) }
}

fn digest(file: &Path) -> io::Result<manifest::File> {
    let mut hasher = Hasher::default();
    let mut from = std::fs::File::open(file)?;
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        let read = io::Read::read(&mut from, &mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
    let sha256 = hasher.finish().to_string();
    Ok(manifest::File { path: format!("{DATA}/{STORE}"), bytes, sha256 })
}

/// The store's file, if the store is a file: the configured one, else the one in the data folder.
fn store_of(data: &Path, configured: Option<&str>) -> Result<Option<PathBuf>, Failure> {
    let usual = data.join(STORE);
    let file = match configured {
        None | Some("sqlite") => usual.exists().then_some(usual),
        Some(url) => epsilon_store::file(url)
            .map_err(|err| Failure::usage("`gateway.store` cannot be used").with_cause(&err))?
            .map(Path::to_owned),
    };
    Ok(file)
}

fn no_platform(data: &Path) -> Failure {
    Failure::usage(format!("no gateway keeps its data in `{}`", data.display()))
        .hint("say where it does with `--data-dir DIR` or EPSILON_DATA_DIR")
}

/// The builder's settings, and the gateway's `store` setting.
pub(super) fn settings(
    file: Option<&Path>,
    data: &Path,
) -> Result<(Config, Option<String>), Failure> {
    let mut layers = Layers::load(file, std::env::vars_os(), &[])?;
    let store = layers.take_text("gateway", "store")?;
    let settings: Settings = layers.section()?;
    let config = Config::new(settings, &data.join("builder"))
        .map_err(|err| Failure::usage("a setting cannot be used").with_cause(&err))?;
    Ok((config, store))
}

pub(super) fn filter() -> String {
    log::filter().unwrap_or_else(|| "warn".into())
}

/// Runs work on files outside of the runtime's own threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|err| Err(io::Error::other(err)))
}

/// Describes a version without its image.
pub(super) fn left_out(one: &LeftOut) -> String {
    let serves = if one.serves { "serves" } else { "not serving" };
    format!("{} ({serves}): {}", one.version, one.image)
}
