//! `kvtier model`: which model files there are.

use std::path::Path;

use indicatif::ProgressBar;
use kvtier_engine::models::{DEFAULT_MODEL, ModelError, ModelStore};
use serde_json::{Value, json};

use crate::args::ModelCommand;
use crate::failure::Failure;
use crate::load;
use crate::output;

/// Runs the command.
pub fn run(command: &ModelCommand) -> Result<(), Failure> {
    let store = ModelStore::from_env().map_err(Failure::input)?;
    match command {
        ModelCommand::List { json } => list(&store, *json),
        ModelCommand::Fetch { name, json } => {
            let name = name.as_deref().unwrap_or(DEFAULT_MODEL);
            let bar = ProgressBar::no_length().with_style(load::bytes_style());
            let path = store.fetch(name, |progress| load::show_fetch(&bar, progress));
            bar.finish_and_clear();
            print_path(&store, name, &path.map_err(failed)?, *json)
        }
        ModelCommand::Verify { name, json } => verify(&store, name.as_deref().unwrap_or(DEFAULT_MODEL), *json),
        ModelCommand::Path { name, json } => {
            let name = name.as_deref().unwrap_or(DEFAULT_MODEL);
            print_path(&store, name, &store.path(name).map_err(failed)?, *json)
        }
    }
}

fn failed(error: ModelError) -> Failure {
    Failure::from_error(&error, 2)
}

/// Size that the file of a known model has when it is whole.
fn bytes_of(store: &ModelStore, name: &str) -> Option<u64> {
    store.list().into_iter().find(|(model, _)| model.name == name).map(|(model, _)| model.bytes)
}

fn print_path(store: &ModelStore, name: &str, path: &Path, as_json: bool) -> Result<(), Failure> {
    let path = path.display().to_string();
    if as_json {
        return output::print_line(&json!({ "name": name, "path": path, "bytes": bytes_of(store, name) }).to_string());
    }
    output::print_line(&path)
}

fn verify(store: &ModelStore, name: &str, as_json: bool) -> Result<(), Failure> {
    let object = |path: &Path, bytes: Option<u64>, ok: bool| -> Value {
        json!({ "name": name, "path": path.display().to_string(), "bytes": bytes, "ok": ok })
    };
    match store.verify(name) {
        Ok(path) if as_json => output::print_line(&object(&path, bytes_of(store, name), true).to_string()),
        Ok(path) => output::print_line(&format!("{}: size and SHA-256 are right", path.display())),
        Err(error) => {
            if let ModelError::Damaged { path, bytes, .. } = &error
                && as_json
            {
                output::print_line(&object(path, Some(*bytes), false).to_string())?;
            }
            Err(failed(error))
        }
    }
}

fn list(store: &ModelStore, as_json: bool) -> Result<(), Failure> {
    for (model, present) in store.list() {
        let line = if as_json {
            json!({ "name": model.name, "bytes": model.bytes, "present": present, "default": model.name == DEFAULT_MODEL }).to_string()
        } else {
            let here = if present { "here" } else { "not fetched" };
            format!("{}  {:.1} MB  {here}", model.name, model.bytes as f64 / 1e6)
        };
        output::print_line(&line)?;
    }
    Ok(())
}
