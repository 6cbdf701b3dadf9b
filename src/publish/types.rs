//! What a TypeScript file declares and exports as types only: gone at run time, though imports and exports still name it.

use std::collections::BTreeSet;

use swc_common::{FileName, SourceMap};
use swc_ecma_ast::*;
use swc_ecma_parser::{Syntax, TsSyntax, parse_file_as_module};

#[derive(Debug, Default)]
pub(super) struct Types {
    pub declared: BTreeSet<String>,
    pub exported: BTreeSet<String>,
}

impl Types {
    /// Of a file that was parsed before; nothing where it cannot be parsed so.
    pub fn of(original: &str) -> Self {
        let sources = SourceMap::default();
        let file = sources.new_source_file(FileName::Anon.into(), original.to_owned());
        let syntax = Syntax::Typescript(TsSyntax::default());
        let parsed = parse_file_as_module(&file, syntax, EsVersion::latest(), None, &mut Vec::new());
        let mut types = Self::default();
        let Ok(module) = parsed else { return types };
        let mut exports = Vec::new();
        for item in &module.body {
            match item {
                ModuleItem::Stmt(Stmt::Decl(declaration)) => types.declared.extend(names(declaration)),
                ModuleItem::ModuleDecl(declaration) => types.module_declaration(declaration, &mut exports),
                ModuleItem::Stmt(_) => {}
            }
        }
        // Those that transforming has left out already.
        exports.retain(|(name, _)| types.declared.contains(name));
        types.exported.extend(exports.into_iter().map(|(_, exported)| exported));
        types
    }

    /// `exports` gets the names of this file that are exported, and what as.
    fn module_declaration(&mut self, declaration: &ModuleDecl, exports: &mut Vec<(String, String)>) {
        match declaration {
            ModuleDecl::ExportDecl(export) => {
                let names = names(&export.decl);
                self.exported.extend(names.iter().cloned());
                self.declared.extend(names);
            }
            ModuleDecl::Import(import) => {
                for specifier in &import.specifiers {
                    let of_name = matches!(specifier, ImportSpecifier::Named(named) if named.is_type_only);
                    if import.type_only || of_name {
                        self.declared.insert(specifier.local().sym.to_string());
                    }
                }
            }
            ModuleDecl::ExportNamed(export) => {
                for specifier in &export.specifiers {
                    let ExportSpecifier::Named(named) = specifier else { continue };
                    let exported = named.exported.as_ref().unwrap_or(&named.orig).atom().to_string();
                    if export.type_only || named.is_type_only {
                        self.exported.insert(exported);
                    } else if export.src.is_none() {
                        exports.push((named.orig.atom().to_string(), exported));
                    }
                }
            }
            ModuleDecl::TsImportEquals(import) => drop(self.declared.insert(import.id.sym.to_string())),
            _ => {}
        }
    }
}

/// Names that a declaration gives to types, or to what is somewhere else. Of classes and enums too: whoever asks knows which
/// names are values.
fn names(declaration: &Decl) -> Vec<String> {
    let name = match declaration {
        Decl::TsInterface(interface) => &interface.id,
        Decl::TsTypeAlias(alias) => &alias.id,
        Decl::TsEnum(one) => &one.id,
        Decl::TsModule(module) => match &module.id {
            TsModuleName::Ident(name) => name,
            TsModuleName::Str(_) => return Vec::new(),
        },
        Decl::Class(class) => &class.ident,
        Decl::Fn(function) => &function.ident,
        Decl::Var(variables) if variables.declare => {
            let idents = variables.decls.iter().filter_map(|one| one.name.as_ident());
            return idents.map(|ident| ident.id.sym.to_string()).collect();
        }
        Decl::Var(_) | Decl::Using(_) => return Vec::new(),
    };
    vec![name.sym.to_string()]
}
