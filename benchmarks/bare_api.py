"""An API with nothing but FastAPI: a route sends a task from a thread. `benchmarks/api.py` compares with it."""

import asyncio
import importlib
import os

from fastapi import FastAPI
from pydantic import BaseModel

reports = importlib.import_module(f"{os.environ['SLUG']}.tasks.reports")
app = FastAPI()


class NewReport(BaseModel):
    """What a client sends."""

    folders: list[str]


@app.post("/api/v1/reports", status_code=202)
async def start_report(report: NewReport) -> dict[str, str]:
    """Send a task."""
    result = await asyncio.to_thread(reports.generate_report.apply_async, (report.folders,))
    return {"task_id": result.id}


@app.get("/health/live")
async def is_live() -> dict[str, str]:
    """Tell that the process serves requests."""
    return {"status": "healthy"}
