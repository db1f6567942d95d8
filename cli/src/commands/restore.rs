//! `epsilon restore FILE`: the way back of `epsilon backup`, into a data folder that is not there or empty. All of the file
//! is checked before anything is written; images go into the engine first, and the data folder appears last, by one rename.
//! What fails on the way leaves neither.

use super::backup::{Shown, blocking, filter, left_out, settings};
use crate::{
    backup::{
        DATA, IMAGES, STORE,
        manifest::{Manifest, Store},
        place::Draft,
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
The container engine has to run; images that it has already are left as they are. Then start the platform on the new data
folder: it serves what the backup served, without a build and without a network.

  epsilon restore /backup/epsilon.tar.gz --data-dir /var/lib/epsilon && epsilon up --data-dir /var/lib/epsilon")]
pub(crate) struct Restore {
    /// The file that `epsilon backup` made
    file: PathBuf,
    /// Settings of the platform, YAML: which engine it has
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What the steps of a restore work with.
struct Restorer {
    file: PathBuf,
    data: PathBuf,
    config: Config,
    stop: Arc<AtomicBool>,
    shown: Shown,
    loaded: parking_lot::Mutex<Option<Loaded>>,
}

/// What became of the backup's images.
struct Loaded {
    engine: Images,
    /// Names that the engine did not have before: all that is put into it, and all that is taken away again.
    names: Vec<String>,
    /// Names that are another image's here.
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
            shown: Shown::new(),
            loaded: parking_lot::Mutex::default(),
        };
        let mut asked = ShutdownSignals::new()?;
        let restored = tokio::select! {
            biased; // a wish to end goes first
            signal = asked.next() => {
                restorer.stop.store(true, Ordering::Relaxed);
                Err(Failure::new("INTERRUPTED", format!("ended by {signal}; nothing was restored")))
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
        tell(&restorer, &manifest, loaded, others, globals.json)
    }
}

impl Restorer {
    async fn restore(&self) -> Result<Manifest, Failure> {
        self.shown.say("checking the file");
        let manifest = self.read(None, None).await?;
        self.refuse_others_images(&manifest)?;
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
        draft.place().map_err(|err| self.no_draft(&err))?;
        Ok(manifest)
    }

    async fn read(&self, into: Option<&Path>, bytes: Option<u64>) -> Result<Manifest, Failure> {
        let (file, stop, into) =
            (self.file.clone(), Arc::clone(&self.stop), into.map(Path::to_owned));
        let told = self
            .shown
            .bytes(bytes.unwrap_or_else(|| fs::metadata(&file).map_or(0, |file| file.len())));
        let work = move || Ok(read::read(&file, into.as_deref(), &told, &stop));
        let read = blocking(work).await.unwrap_or_else(|err| Err(Unfit::File(err)));
        read.map_err(|err| {
            let failure = self.unfit().with_cause(&err);
            match err {
                Unfit::List(crate::backup::manifest::ListError::Format(_)) => failure.hint(
                    "restore it with an `epsilon` of the release that made it, or a later one",
                ),
                Unfit::Damaged(_) | Unfit::Missing(_) => {
                    failure.hint("copy it again from where it was kept, or take an older one")
                }
                _ => failure,
            }
        })
    }

    /// Puts the images into the engine, and the names that this engine gives them into the store.
    async fn load(&self, engine: Images, manifest: &Manifest, draft: &Path) -> Result<(), Failure> {
        self.shown.say("the images");
        let (mut lacking, mut others) = (BTreeSet::new(), BTreeSet::new());
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
            refuse_taken(&store, &draft.join("looked-at.db"), &others).await?;
        }
        *self.loaded.lock() = Some(Loaded {
            engine: engine.clone(),
            names: lacking.iter().map(ToString::to_string).collect(),
            others: others.len(),
        });
        if !lacking.is_empty() {
            let listed = manifest.images.iter().map(|image| &*image.reference).collect();
            let chosen = LayoutSelection::new(&draft.join(IMAGES), &listed, &lacking)
                .map_err(|err| self.unfit().with_cause(&err))?;
            engine.load(chosen).await.map_err(failed)?;
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
                "The engine has another image of this name, which stays. Functions start by their own images."
            );
        }
        Ok(())
    }

    /// An image of a registry is there; whoever wrote one into this file would have it run under a name that is not theirs.
    fn refuse_others_images(&self, manifest: &Manifest) -> Result<(), Failure> {
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

    /// Takes away what was put into the engine.
    async fn undo(&self) {
        let Some(Loaded { engine, names, others: _ }) = self.loaded.lock().take() else { return };
        for name in names {
            if let Err(err) = engine.remove(&name).await {
                tracing::warn!(
                    image = name,
                    cause = err.message,
                    "An image of the backup stays in the engine."
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

/// A version serves by the image of its name. Where that is another one here, one of both would not serve any more.
/// `copy`: where one of the store may lie, which is gone with the draft.
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

/// A folder with anything in it is somebody's.
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
    let (code, message) = match lock::is_taken(data) {
        true => ("DATA_DIR_TAKEN", format!("nothing was restored: a gateway runs on `{shown}`")),
        false => ("DATA_DIR_NOT_EMPTY", format!("nothing was restored: `{shown}` is not empty")),
    };
    Err(Failure::new(code, message).hint(
        "name another folder with `--data-dir DIR`, or stop the platform and move that one away",
    ))
}

/// What the list says is what it takes; a disk that fills up would break off later, and others with it.
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

fn tell(
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
    let (data, made) = (of.data.display(), output::time(manifest.created_at));
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
