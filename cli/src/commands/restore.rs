//! `epsilon restore FILE`: restores a backup into a data folder that does not exist or is empty.
//! All of the file is verified before anything is written; images are loaded into the engine first,
//! and the data folder appears last, by one rename. A failed restore leaves neither.

use super::backup::{ProgressLine, blocking, filter, left_out, settings};
use crate::{
    backup::{
        DATA, IMAGES, STORE,
        draft::Draft,
        manifest::{Manifest, Store},
        read::{self, Unfit},
        write::folder_of,
    },
    data_dir,
    failure::Failure,
    globals::Globals,
    output,
};
use clap::Args;
use epsilon_api::{build::BuildError, function::ImageRef, units::Bytes};
use epsilon_bootstrap::{lock, log, signals::ShutdownSignals};
use epsilon_builder::{
    config::Config,
    images::{Image, Images, LayoutSelection, belongs_in_backup},
};
use serde_json::json;
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

#[derive(Debug, Args)]
#[command(after_help = "\
The container engine has to run; images that it already has stay unchanged. Then start the platform
on the new data folder: it serves what the backup served, without a build and without a network.

  epsilon restore /backup/epsilon.tar.gz --data-dir /var/lib/epsilon
  epsilon up --data-dir /var/lib/epsilon")]
pub(crate) struct Restore {
    /// The file that `epsilon backup` made
    file: PathBuf,
    /// Settings of the platform, YAML: its container engine
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// State of a restore.
struct Restorer {
    file: PathBuf,
    data: PathBuf,
    config: Config,
    stop: Arc<AtomicBool>,
    shown: ProgressLine,
    loaded: parking_lot::Mutex<Option<Loaded>>,
}

/// The images of the backup that were loaded.
struct Loaded {
    engine: Images,
    /// Names that the engine did not have before: only these are loaded, and removed after a
    /// failure.
    names: Vec<String>,
    /// Number of names that another image has here.
    others: usize,
}

impl Restore {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let _logging = log::init(Some(log::Format::Compact), Some(&filter()))?;
        let data = data_dir::locate(globals.data_dir.as_deref())?;
        refuse_used(&data)?;
        let (config, _) = settings(self.config.as_deref(), &data)?;
        let restorer = Restorer {
            file: self.file,
            data,
            config,
            stop: Arc::default(),
            shown: ProgressLine::new(),
            loaded: parking_lot::Mutex::default(),
        };
        let mut signals = ShutdownSignals::new()?;
        let restored = tokio::select! {
            biased; // the signal first
            signal = signals.next() => {
                restorer.stop.store(true, Ordering::Relaxed);
                Err(Failure::new("INTERRUPTED", format!("interrupted by {signal}; nothing was restored")))
            }
            restored = restorer.restore() => restored,
        };
        if restored.is_err() {
            restorer.undo().await;
        }
        let manifest = restored?;
        let loaded = restorer.loaded.lock();
        let (loaded, others) =
            loaded.as_ref().map_or((0, 0), |loaded| (loaded.names.len(), loaded.others));
        report(&restorer, &manifest, loaded, others, globals.json)
    }
}

impl Restorer {
    async fn restore(&self) -> Result<Manifest, Failure> {
        self.shown.say("checking the file");
        let manifest = self.read(None, None).await?;
        self.refuse_registry_images(&manifest)?;
        let images = if manifest.images.is_empty() {
            None
        } else {
            Some(Images::open(&self.config).await.map_err(failed)?)
        };

        let draft = Draft::new(&self.data).map_err(|err| self.no_draft(&err))?;
        require_room(draft.path(), manifest.bytes())?;
        let manifest = self.read(Some(draft.path()), Some(manifest.bytes())).await?;
        if let Some(engine) = images {
            self.load(engine, &manifest, draft.path()).await?;
        }
        self.shown.say("the data folder");
        draft.commit().map_err(|err| self.no_draft(&err))?;
        Ok(manifest)
    }

    async fn read(&self, into: Option<&Path>, bytes: Option<u64>) -> Result<Manifest, Failure> {
        let file = self.file.clone();
        let stop = Arc::clone(&self.stop);
        let into = into.map(Path::to_owned);
        let on_read = self
            .shown
            .bytes(bytes.unwrap_or_else(|| fs::metadata(&file).map_or(0, |file| file.len())));
        let work = move || Ok(read::read(&file, into.as_deref(), &on_read, &stop));
        let read = blocking(work).await.unwrap_or_else(|err| Err(Unfit::File(err)));
        read.map_err(|err| {
            let failure = self.unfit().with_cause(&err);
            match err {
                Unfit::List(crate::backup::manifest::ListError::Format(_)) => failure.hint(
                    "restore it with an `epsilon` of the release that made it, or a later one",
                ),
                Unfit::Damaged(_) | Unfit::Missing(_) => {
                    failure.hint("copy it again from its original place, or use an older backup")
                }
                _ => failure,
            }
        })
    }

    /// Loads the images into the engine, and writes the ids that they have in this engine into the
    /// store.
    async fn load(&self, engine: Images, manifest: &Manifest, draft: &Path) -> Result<(), Failure> {
        self.shown.say("the images");
        let mut lacking = BTreeSet::new();
        let mut others = BTreeSet::new();
        for image in &manifest.images {
            match engine.find(&image.reference).await.map_err(failed)? {
                None => drop(lacking.insert(&*image.reference)),
                Some(found) if found.layers != image.layers => {
                    others.insert(&*image.reference);
                }
                Some(_) => {}
            }
        }
        let store = draft.join(DATA).join(STORE);
        if !others.is_empty() && store.exists() {
            refuse_taken(&store, &draft.join("checked.db"), &others).await?;
        }
        *self.loaded.lock() = Some(Loaded {
            engine: engine.clone(),
            names: lacking.iter().map(ToString::to_string).collect(),
            others: others.len(),
        });
        if !lacking.is_empty() {
            let listed = manifest.images.iter().map(|image| &*image.reference).collect();
            let selection = LayoutSelection::new(&draft.join(IMAGES), &listed, &lacking)
                .map_err(|err| self.unfit().with_cause(&err))?;
            engine.load(selection).await.map_err(failed)?;
        }
        let mut renamed = Vec::new();
        for image in manifest.images.iter().filter(|image| !others.contains(&*image.reference)) {
            let Image { reference, digest, layers } = image;
            let found = engine.find(reference).await.map_err(failed)?;
            let Some(found) = found.filter(|found| found.layers == *layers) else {
                let message = format!(
                    "nothing was restored: the container engine did not take the image `{reference}`"
                );
                return Err(Failure::new("ENGINE_FAILED", message)
                    .hint("its log says more (`journalctl -u docker`)"));
            };
            if found.digest != *digest {
                let old = ImageRef { reference: reference.clone(), digest: digest.clone() };
                renamed.push((old, found.digest));
            }
        }
        if !renamed.is_empty() && store.exists() {
            epsilon_store::rename_images(&store, &renamed).await.map_err(|err| bad_store(&err))?;
        }
        for name in others {
            tracing::warn!(
                image = name,
                "Engine has another image of this name, which stays; functions start from their own images."
            );
        }
        Ok(())
    }

    /// Refuses images with a registry's name: that registry has them, and a forged backup could run
    /// its own code under that name.
    fn refuse_registry_images(&self, manifest: &Manifest) -> Result<(), Failure> {
        let mut names = manifest.images.iter().map(|image| &image.reference);
        let Some(name) = names.find(|name| !belongs_in_backup(&self.config, name)) else {
            return Ok(());
        };
        let name = name.escape_default();
        let message = format!(
            "nothing was restored from `{}`: it holds `{name}`, an image of a registry",
            self.file.display()
        );
        Err(Failure::new("BACKUP_UNFIT", message).hint(
            "if the platform has it as `builder.runtime_image`, give its settings too: `--config FILE`",
        ))
    }

    fn unfit(&self) -> Failure {
        let message = format!("nothing was restored from `{}`", self.file.display());
        Failure::new("BACKUP_UNFIT", message)
    }

    /// Removes the loaded images from the engine.
    async fn undo(&self) {
        let Some(Loaded { engine, names, others: _ }) = self.loaded.lock().take() else { return };
        for name in names {
            if let Err(err) = engine.remove(&name).await {
                tracing::warn!(
                    image = name,
                    cause = err.message,
                    "Image of the backup could not be removed; it stays in the engine."
                );
            }
        }
    }

    fn no_draft(&self, err: &io::Error) -> Failure {
        let message = format!("nothing was restored: `{}` cannot be made", self.data.display());
        Failure::new("DATA_DIR", message).with_cause(err)
    }
}

fn failed(err: BuildError) -> Failure {
    Failure::from(err.body())
}

/// Refuses a restore if a version's image name is another image in this engine: the version would
/// start from the wrong one. `copy`: path for a copy of the store, removed with the draft.
async fn refuse_taken(store: &Path, copy: &Path, others: &BTreeSet<&str>) -> Result<(), Failure> {
    let found = epsilon_store::back_up(store, copy).await.map_err(|err| bad_store(&err))?;
    let versions = found.versions;
    let Some(version) = versions.iter().find(|version| others.contains(&*version.image.reference))
    else {
        return Ok(());
    };
    let name = &version.image.reference;
    let message = format!(
        "nothing was restored: the container engine has another image named `{name}`, which {} would start as",
        version.id
    );
    Err(Failure::new("IMAGE_NAME_TAKEN", message).hint(format!(
        "give that one another name, `docker tag {name} NAME && docker rmi {name}`, or restore on another machine"
    )))
}

fn bad_store(err: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new("STORE", "nothing was restored: the store in the backup cannot be used")
        .with_cause(err)
}

/// Refuses a data folder that is not empty.
fn refuse_used(data: &Path) -> Result<(), Failure> {
    let shown = data.display();
    let is_empty = match fs::read_dir(data) {
        Ok(mut entries) => {
            entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lost+found"))
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => true,
        Err(err) => {
            return Err(
                Failure::new("DATA_DIR", format!("`{shown}` cannot be used")).with_cause(&err)
            );
        }
    };
    if is_empty {
        return Ok(());
    }
    let (code, message) = if lock::is_taken(data) {
        ("DATA_DIR_TAKEN", format!("nothing was restored: a gateway runs on `{shown}`"))
    } else {
        ("DATA_DIR_NOT_EMPTY", format!("nothing was restored: `{shown}` is not empty"))
    };
    Err(Failure::new(code, message).hint(
        "name another folder with `--data-dir DIR`, or stop the platform and move that one away",
    ))
}

/// Refuses a restore that does not fit on the disk: filling the disk would harm other programs too.
fn require_room(folder: &Path, bytes: u64) -> Result<(), Failure> {
    let Ok(disk) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if bytes <= free {
        return Ok(());
    }
    let (need, have) = (Bytes(bytes), Bytes(free));
    let message = format!(
        "nothing was restored: it takes {need}, and the disk of `{}` has {have}",
        folder_of(folder).display()
    );
    Err(Failure::new("DISK_FULL", message)
        .hint("free space there, or name a folder on another disk with `--data-dir DIR`"))
}

fn report(
    of: &Restorer,
    manifest: &Manifest,
    loaded: usize,
    others: usize,
    json: bool,
) -> Result<(), Failure> {
    let there = manifest.images.len().saturating_sub(loaded + others);
    if json {
        return output::json(json!({
            "data_dir": of.data,
            "created_at": manifest.created_at,
            "epsilon": manifest.epsilon,
            "store": manifest.store,
            "functions": manifest.functions,
            "versions": manifest.versions,
            "images_loaded": loaded,
            "images_there": there,
            "left_out": manifest.left_out,
        }));
    }
    let data = of.data.display();
    let made = output::time(manifest.created_at);
    output::line(&format!("{data}  as of {made}, epsilon {}", manifest.epsilon))?;
    if manifest.store == Store::Sqlite {
        let functions = output::count(manifest.functions, "function");
        output::line(&format!(
            "store   {functions}, {}",
            output::count(manifest.versions, "version")
        ))?;
        output::line(&format!("images  {loaded} into the container engine, {there} were there"))?;
    }
    for one in manifest.lost() {
        output::line(&format!("lost    {}; deploy it again", left_out(one)))?;
    }
    output::line(&match manifest.store {
        Store::Sqlite => format!("Next: `epsilon up --data-dir {data}`, or start its service."),
        Store::Elsewhere => {
            "Next: `pg_restore --no-owner --dbname \"$URL\" epsilon.dump`, then start the gateway."
                .to_owned()
        }
    })
}
