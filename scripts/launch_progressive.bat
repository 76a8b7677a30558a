@echo off
rem The three stages in turn, on all GPUs of this machine. Arguments go to "progressive-cascade train":
rem     scripts\launch_progressive.bat --dataset DATASET --preset fast --output runs\first
python -m progressive_cascade.cli train %*
exit /b %ERRORLEVEL%
