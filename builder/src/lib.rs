//! Source to image: checks and interprets what a developer pushed, and makes one image per
//! function.
//!
//! | module | what it does |
//! |---|---|
//! | [`app`] | creates every part once from the settings, [`config`]; provides the `Builder` |
//! | `job` | one build: the steps below in order |
//! | [`source`] | the archive → a checked folder within limits |
//! | [`manifest`] | `epsilon.yaml` and in-code `config` → settings, strictly |
//! | `runtime` | the base image of Node functions, made if it is missing |
//! | [`wrapper`] | the files of the Node wrapper, which are part of this binary |
//! | `dependencies` | npm packages, installed in a temporary container |
//! | `inspect`, [`inspection`] | the code's exports, as reported from such a container |
//! | [`plan`] | all of these → which functions, with what settings, keyed by content |
//! | `rebuild_reasons` | for people: which functions are rebuilt, and why |
//! | `image` | layers and a configuration, composed to the same bytes each time |
//! | `dockerfile` | `runtime: container` |
//! | `publish` | images into this machine's engine or a registry |
//! | [`images`] | exports the engine's images into a backup, and loads them from one |
//! | [`member`], [`serve`] | belonging to a fleet; the listener where its gateways come in |
//! | `engine` | the container engine; the only module that names bollard |
//! | `cache`, `egress_env`, `network`, `blocking` | the folder on disk; proxies and authorities for what reaches out; work that blocks |
//! | [`error`] | why a build ended without images |

pub mod app;
mod blocking;
mod build_command;
mod cache;
pub mod config;
mod dependencies;
mod dockerfile;
mod egress_env;
mod engine;
pub mod error;
mod hashing;
mod image;
pub mod images;
mod inspect;
pub mod inspection;
mod job;
pub mod manifest;
pub mod member;
mod network;
pub mod plan;
mod publish;
mod rebuild_reasons;
mod runtime;
pub mod serve;
pub mod source;
pub(crate) mod value_tree;
pub mod wrapper;
