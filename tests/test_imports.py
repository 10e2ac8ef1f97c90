"""No module imports itself through others, packages' `__init__` and TYPE_CHECKING included."""

from graphlib import TopologicalSorter

import grimp


def test_imports_have_no_cycle() -> None:
    """lint-imports compares sibling modules; this compares all of them."""
    graph = grimp.build_graph("minigpt", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError, which lists a cycle
