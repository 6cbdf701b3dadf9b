//! What a JavaScript module says about itself: its imports, exports and free names, and where they stand.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

use swc_common::{Mark, Span, Spanned, SyntaxContext};
use swc_ecma_ast::*;
use swc_ecma_transforms_base::resolver;
use swc_ecma_visit::{Visit, VisitWith};

/// How a file is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `import … from`, `export … from`.
    Static,
    /// `import('…')`.
    Dynamic,
    Require,
}

#[derive(Debug)]
pub(super) struct Specifier {
    /// The literal with its quotes.
    pub range: Range<usize>,
    pub value: String,
    pub form: Form,
    /// Has `with { … }`.
    pub attributes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BindingKind {
    Default,
    Namespace,
    Named,
}

#[derive(Debug)]
pub(super) struct Binding {
    pub kind: BindingKind,
    pub local: String,
    /// Its name where it comes from.
    pub imported: String,
    pub range: Range<usize>,
    pub used: bool,
}

#[derive(Debug)]
pub(super) struct Import {
    pub range: Range<usize>,
    /// Where its specifier begins.
    pub from: usize,
    pub source: String,
    pub bindings: Vec<Binding>,
}

/// One name of `export { … }`.
#[derive(Debug)]
pub(super) struct Export {
    /// Of the name.
    pub range: Range<usize>,
    /// Of the whole declaration.
    pub declaration: Range<usize>,
    /// The name here, or in `source`.
    pub name: String,
    pub exported: String,
    pub source: Option<String>,
    /// Whether something at run time has this name here.
    pub bound: bool,
}

/// Offsets are bytes of the text that was parsed.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub imports: Vec<Import>,
    /// `export {} from '…'`.
    pub empty_exports: Vec<Range<usize>>,
    pub exports: Vec<Export>,
    /// `export * from '…'`.
    pub stars: Vec<String>,
    /// Every import and export declaration.
    pub declarations: Vec<Range<usize>>,
    pub specifiers: Vec<Specifier>,
    pub import_meta: bool,
    pub top_level_await: Option<usize>,
    pub top_level_return: Option<usize>,
    /// Names that are used and not declared.
    pub free: BTreeSet<String>,
    /// Top-level functions, classes and variables.
    pub declared: BTreeSet<String>,
    pub exported: BTreeSet<String>,
    /// Top-level classes, and where they begin.
    pub classes: BTreeMap<String, usize>,
    /// Where a class begins that is the default export.
    pub default_class: Option<usize>,
    /// The name of what is the default export.
    pub default_name: Option<String>,
}

impl Facts {
    /// Where a class begins that the runtime would take for the handler, and could not call.
    pub fn class_as_handler(&self) -> Option<usize> {
        const HANDLER: &str = "handleEvent";
        let named = self.declared.contains(HANDLER) || self.exported.contains(HANDLER);
        match self.classes.get(HANDLER) {
            Some(at) => Some(*at),
            None if named => None,
            None => self.default_class.or_else(|| self.classes.get(self.default_name.as_ref()?).copied()),
        }
    }
}

/// Must run inside of swc's `GLOBALS`. `base` is where the text begins in the source map.
pub(super) fn analyse(program: &mut Program, base: u32) -> Facts {
    let (unresolved, top_level) = (Mark::new(), Mark::new());
    program.mutate(&mut resolver(unresolved, top_level, false));
    let mut analysis = Analysis {
        base,
        free: SyntaxContext::empty().apply_mark(unresolved),
        is_module: program.is_module(),
        functions: 0,
        uses: HashSet::new(),
        bindings: Vec::new(),
        facts: Facts::default(),
    };
    program.visit_with(&mut analysis);
    let Analysis { mut facts, uses, bindings, .. } = analysis;
    let all = facts.imports.iter_mut().flat_map(|import| &mut import.bindings);
    for (binding, id) in all.zip(bindings) {
        binding.used = uses.contains(&id);
    }
    facts
}

struct Analysis {
    base: u32,
    free: SyntaxContext,
    is_module: bool,
    /// Functions (and class bodies) around the node.
    functions: usize,
    uses: HashSet<Id>,
    /// Of `facts.imports`, in order.
    bindings: Vec<Id>,
    facts: Facts,
}

impl Analysis {
    fn range(&self, span: Span) -> Range<usize> {
        span.lo.0.saturating_sub(self.base) as usize..span.hi.0.saturating_sub(self.base) as usize
    }

    fn inside_function(&mut self, visit: impl FnOnce(&mut Self)) {
        self.functions += 1;
        visit(self);
        self.functions -= 1;
    }

    fn specifier(&mut self, literal: &Str, form: Form, attributes: bool) {
        // One that is no UTF-8 names no file.
        let Some(value) = literal.value.as_str().map(str::to_owned) else { return };
        self.facts.specifiers.push(Specifier { range: self.range(literal.span), value, form, attributes });
    }

    fn top_level_await(&mut self, span: Span) {
        if self.functions == 0 && self.facts.top_level_await.is_none() {
            self.facts.top_level_await = Some(self.range(span).start);
        }
    }

    /// `require`, or what an ES module made of `createRequire`.
    fn is_require(&self, expr: &Expr) -> bool {
        matches!(expr, Expr::Ident(ident) if ident.sym == "require" && (self.is_module || ident.ctxt == self.free))
    }

    fn declare(&mut self, declaration: &Decl) -> Vec<String> {
        let mut names = Names::default();
        match declaration {
            Decl::Fn(function) => names.0.push(function.ident.sym.to_string()),
            Decl::Class(class) => {
                let at = self.range(class.class.span).start;
                self.facts.classes.insert(class.ident.sym.to_string(), at);
                names.0.push(class.ident.sym.to_string());
            }
            Decl::Var(variables) => variables.decls.iter().for_each(|one| one.name.visit_with(&mut names)),
            _ => {}
        }
        self.facts.declared.extend(names.0.iter().cloned());
        names.0
    }

    fn export_specifiers(&mut self, export: &NamedExport) {
        for specifier in &export.specifiers {
            let name = match specifier {
                ExportSpecifier::Named(named) => {
                    if let (None, ModuleExportName::Ident(ident)) = (&export.src, &named.orig) {
                        ident.visit_with(self);
                    }
                    let exported = export_name(named.exported.as_ref().unwrap_or(&named.orig));
                    self.facts.exports.push(Export {
                        range: self.range(named.span),
                        declaration: self.range(export.span),
                        name: export_name(&named.orig),
                        exported: exported.clone(),
                        source: export.src.as_ref().map(|src| src.value.as_str().unwrap_or_default().to_owned()),
                        bound: !matches!(&named.orig, ModuleExportName::Ident(ident) if ident.ctxt == self.free),
                    });
                    exported
                }
                ExportSpecifier::Namespace(namespace) => export_name(&namespace.name),
                ExportSpecifier::Default(default) => default.exported.sym.to_string(),
            };
            self.facts.exported.insert(name);
        }
    }
}

impl Visit for Analysis {
    fn visit_module_item(&mut self, item: &ModuleItem) {
        if let ModuleItem::ModuleDecl(declaration) = item {
            let range = self.range(declaration.span());
            self.facts.declarations.push(range);
        }
        item.visit_children_with(self);
    }

    fn visit_module(&mut self, module: &Module) {
        for item in &module.body {
            if let ModuleItem::Stmt(Stmt::Decl(declaration)) = item {
                self.declare(declaration);
            }
        }
        module.visit_children_with(self);
    }

    fn visit_script(&mut self, script: &Script) {
        for statement in &script.body {
            if let Stmt::Decl(declaration) = statement {
                self.declare(declaration);
            }
        }
        script.visit_children_with(self);
    }

    fn visit_import_decl(&mut self, import: &ImportDecl) {
        let range = self.range(import.span);
        let mut bindings = Vec::new();
        for specifier in &import.specifiers {
            let (kind, local) = match specifier {
                ImportSpecifier::Default(one) => (BindingKind::Default, &one.local),
                ImportSpecifier::Namespace(one) => (BindingKind::Namespace, &one.local),
                ImportSpecifier::Named(one) => (BindingKind::Named, &one.local),
            };
            let imported = match specifier {
                ImportSpecifier::Named(one) => one.imported.as_ref().map(export_name),
                _ => None,
            };
            self.bindings.push(local.to_id());
            let (range, local) = (self.range(specifier.span()), local.sym.to_string());
            let imported = imported.unwrap_or_else(|| local.clone());
            bindings.push(Binding { kind, local, imported, range, used: false });
        }
        let from = self.range(import.src.span).start;
        let source = import.src.value.as_str().unwrap_or_default().to_owned();
        self.facts.imports.push(Import { range, from, source, bindings });
        self.specifier(&import.src, Form::Static, import.with.is_some());
    }

    fn visit_named_export(&mut self, export: &NamedExport) {
        self.export_specifiers(export);
        if let Some(src) = &export.src {
            self.specifier(src, Form::Static, export.with.is_some());
            if export.specifiers.is_empty() {
                let range = self.range(export.span);
                self.facts.empty_exports.push(range);
            }
        }
    }

    fn visit_export_all(&mut self, export: &ExportAll) {
        self.facts.stars.push(export.src.value.as_str().unwrap_or_default().to_owned());
        self.specifier(&export.src, Form::Static, export.with.is_some());
    }

    fn visit_export_decl(&mut self, export: &ExportDecl) {
        let names = self.declare(&export.decl);
        self.facts.exported.extend(names);
        export.visit_children_with(self);
    }

    fn visit_export_default_decl(&mut self, export: &ExportDefaultDecl) {
        let ident = match &export.decl {
            DefaultDecl::Fn(function) => function.ident.as_ref(),
            DefaultDecl::Class(class) => class.ident.as_ref(),
            DefaultDecl::TsInterfaceDecl(_) => None,
        };
        self.facts.declared.extend(ident.map(|ident| ident.sym.to_string()));
        if matches!(export.decl, DefaultDecl::Class(_)) {
            self.facts.default_class = Some(self.range(export.span).start);
        }
        export.visit_children_with(self);
    }

    fn visit_export_default_expr(&mut self, export: &ExportDefaultExpr) {
        let mut expr = &*export.expr;
        while let Expr::Paren(inner) = expr {
            expr = &inner.expr;
        }
        match expr {
            Expr::Ident(ident) => self.facts.default_name = Some(ident.sym.to_string()),
            Expr::Class(class) => self.facts.default_class = Some(self.range(class.class.span).start),
            _ => {}
        }
        export.visit_children_with(self);
    }

    fn visit_ident(&mut self, ident: &Ident) {
        if ident.ctxt == self.free {
            self.facts.free.insert(ident.sym.to_string());
        }
        self.uses.insert(ident.to_id());
    }

    // Labels are no names of values.
    fn visit_labeled_stmt(&mut self, statement: &LabeledStmt) {
        statement.body.visit_with(self);
    }

    fn visit_break_stmt(&mut self, _: &BreakStmt) {}

    fn visit_continue_stmt(&mut self, _: &ContinueStmt) {}

    fn visit_call_expr(&mut self, call: &CallExpr) {
        let form = match &call.callee {
            Callee::Import(_) => Some(Form::Dynamic),
            Callee::Expr(callee) if self.is_require(callee) => Some(Form::Require),
            Callee::Expr(callee) => match &**callee {
                Expr::Member(member) if member.prop.is_ident_with("resolve") && self.is_require(&member.obj) => {
                    Some(Form::Require)
                }
                _ => None,
            },
            Callee::Super(_) => None,
        };
        if let (Some(form), Some(ExprOrSpread { spread: None, expr })) = (form, call.args.first())
            && let Expr::Lit(Lit::Str(literal)) = &**expr
        {
            self.specifier(literal, form, call.args.len() > 1);
        }
        call.visit_children_with(self);
    }

    fn visit_meta_prop_expr(&mut self, meta: &MetaPropExpr) {
        self.facts.import_meta |= meta.kind == MetaPropKind::ImportMeta;
    }

    fn visit_await_expr(&mut self, expr: &AwaitExpr) {
        self.top_level_await(expr.span);
        expr.visit_children_with(self);
    }

    fn visit_for_of_stmt(&mut self, statement: &ForOfStmt) {
        if statement.is_await {
            self.top_level_await(statement.span);
        }
        statement.visit_children_with(self);
    }

    fn visit_return_stmt(&mut self, statement: &ReturnStmt) {
        if self.functions == 0 && self.facts.top_level_return.is_none() {
            self.facts.top_level_return = Some(self.range(statement.span).start);
        }
        statement.visit_children_with(self);
    }

    fn visit_function(&mut self, function: &Function) {
        self.inside_function(|this| function.visit_children_with(this));
    }

    fn visit_arrow_expr(&mut self, arrow: &ArrowExpr) {
        self.inside_function(|this| arrow.visit_children_with(this));
    }

    fn visit_getter_prop(&mut self, getter: &GetterProp) {
        self.inside_function(|this| getter.visit_children_with(this));
    }

    fn visit_setter_prop(&mut self, setter: &SetterProp) {
        self.inside_function(|this| setter.visit_children_with(this));
    }

    fn visit_class(&mut self, class: &Class) {
        class.super_class.visit_with(self);
        self.inside_function(|this| class.body.visit_with(this));
    }
}

/// The names that a pattern binds.
#[derive(Default)]
struct Names(Vec<String>);

impl Visit for Names {
    fn visit_binding_ident(&mut self, binding: &BindingIdent) {
        self.0.push(binding.id.sym.to_string());
    }

    fn visit_assign_pat_prop(&mut self, property: &AssignPatProp) {
        self.0.push(property.key.id.sym.to_string());
    }

    // Not into default values.
    fn visit_expr(&mut self, _: &Expr) {}
}

fn export_name(name: &ModuleExportName) -> String {
    match name {
        ModuleExportName::Ident(ident) => ident.sym.to_string(),
        ModuleExportName::Str(literal) => literal.value.as_str().unwrap_or_default().to_owned(),
    }
}
