//! The few keys of `package.json` that matter here, and the entry of a Node project.

use crate::{
    error::{self, Hint},
    source::Source,
    text::{decode, short},
};
use epsilon_api::{build::BuildError, suggest, units::Bytes};
use serde_json::Value;

/// Its name at the root of a project.
const FILE: &str = "package.json";

/// Largest `package.json`; npm's own largest are about 100 KiB.
const MAX_BYTES: Bytes = Bytes(1 << 20);

/// Extensions that Node loads as code, in the order in which `index.*` is looked for.
const MODULES: [&str; 6] = ["js", "mjs", "cjs", "ts", "mts", "cts"];

/// Whether Node loads this path as code.
pub(super) fn is_module(path: &str) -> bool {
    path.rsplit_once('.').is_some_and(|(_, ending)| MODULES.contains(&ending))
}

/// For a file that Node loads only after compilation: what it is, and a hint.
fn uncompiled(path: &str) -> Option<(&'static str, String)> {
    let (stem, ending) = path.rsplit_once('.')?;
    let plain = match ending {
        "tsx" => "ts",
        "jsx" => "js",
        _ => return None,
    };
    let path = short(path);
    let name = stem.rsplit('/').next().unwrap_or(stem);
    let hint = format!(
        "compile it: `build: esbuild {path} --bundle --packages=external --platform=node --format=cjs \
         --outfile=dist/{name}.cjs` in `epsilon.yaml` makes `dist/{name}.cjs`, to be named in its place; `esbuild` \
         belongs into the `devDependencies`. Without JSX in it, call it `{}.{plain}`",
        short(stem)
    );
    Some(("JSX, which Node does not run", hint))
}

/// Checks an entry that the manifest names.
pub(super) fn check_entry(entry: &str, source: &Source) -> Result<(), String> {
    let known = source.files.iter().map(|file| file.path.as_str()).filter(|path| is_module(path));
    match source.get(entry) {
        Some(_) if is_module(entry) => Ok(()),
        Some(_) => Err(match uncompiled(entry) {
            Some((why, hint)) => format!("is `{entry}`: {why}; {hint}"),
            None => format!("is `{entry}`, which is no JavaScript or TypeScript file"),
        }),
        None => Err(match suggest::nearest(entry, known) {
            Some(near) => format!("is `{entry}`, which does not exist; did you mean `{near}`?"),
            None => format!("is `{entry}`, which does not exist"),
        }),
    }
}

/// The relevant keys of `package.json`. Absent keys and unexpected types are ignored: npm reports
/// them.
#[derive(Debug, Default)]
pub(super) struct Package {
    pub(super) name: Option<String>,
    main: Option<String>,
}

impl Package {
    pub(super) fn read(source: &Source) -> Result<Self, BuildError> {
        let Some(bytes) = source.read(FILE, MAX_BYTES)? else { return Ok(Self::default()) };
        let json: Value = serde_json::from_str(&decode(FILE, bytes)?)
            .map_err(|cause| error::manifest_invalid(format!("{FILE}: {cause}")))?;
        let text = |key: &str| Some(json.get(key)?.as_str()?.to_owned());
        Ok(Self { name: text("name"), main: text("main") })
    }

    /// The entry of a project whose manifest does not name it.
    pub(super) fn entry(&self, source: &Source) -> Result<String, BuildError> {
        let main = self.main.as_deref().and_then(|main| {
            let main = main.trim_start_matches("./").trim_end_matches('/');
            let exact = Some(main.to_owned()).filter(|main| is_module(main));
            let near = endings(main).chain(endings(&format!("{main}/index"))).collect::<Vec<_>>();
            exact.into_iter().chain(near).find(|path| source.get(path).is_some())
        });
        let index = || endings("index").find(|path| source.get(path).is_some());
        main.or_else(index).ok_or_else(|| self.no_entry(source))
    }

    fn no_entry(&self, source: &Source) -> BuildError {
        let has = |path: &str| source.get(path).is_some();
        if source.files.is_empty() {
            return error::no_functions("the project is empty")
                .hint("add an `index.js` that exports a function");
        }
        if let Some(main) = &self.main {
            let path = main.trim_start_matches("./");
            if let Some((why, hint)) = uncompiled(path).filter(|_| has(path)) {
                let text = format!("`main` of {FILE} is `{}`: {why}", short(path));
                return error::no_functions(text).hint(hint);
            }
            let main = short(main);
            return error::no_functions(format!(
                "`main` of {FILE} is `{main}`, which does not exist"
            ))
            .hint(
                "is it built, and pushed? What `.gitignore` leaves out is not; a line `!dist/` in \
                 `.epsilonignore` takes a folder back in",
            );
        }
        for path in ["index.tsx", "index.jsx"].into_iter().filter(|path| has(path)) {
            if let Some((why, hint)) = uncompiled(path) {
                let text = format!("there is an `{path}`: {why}");
                return error::no_functions(text).hint(hint);
            }
        }
        let err = error::no_functions("there is neither an `epsilon.yaml` nor an `index.js`");
        if has("Dockerfile") {
            return err
                .hint("to build the `Dockerfile`, write `runtime: container` into `epsilon.yaml`");
        }
        if has("main.py") {
            return err.hint(
                "`runtime: python` is not supported yet; `runtime: container` runs any image",
            );
        }
        match only_folder(source) {
            Some(folder) => err.hint(format!("pack what is in `{folder}`, not the folder itself")),
            None => err.hint(
                "add an `index.js` that exports a function, or name the file: `main` in \
                 `package.json`, `entry` in `epsilon.yaml`",
            ),
        }
    }
}

fn endings(stem: &str) -> impl Iterator<Item = String> + '_ {
    MODULES.iter().map(move |ending| format!("{stem}.{ending}"))
}

/// The folder that contains all files, if there is one.
fn only_folder(source: &Source) -> Option<&str> {
    let (folder, _) = source.files.first()?.path.split_once('/')?;
    let inside = |path: &str| path.split_once('/').is_some_and(|(first, _)| first == folder);
    source.files.iter().all(|file| inside(&file.path)).then_some(folder)
}
