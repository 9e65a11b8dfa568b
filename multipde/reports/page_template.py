"""The templates of pages, which are files beside this one."""

from pathlib import Path
from typing import Any


def rendered(template: str, **values: Any) -> str:
    """The text of a page from the template of this name; every value is escaped unless it is markup."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
